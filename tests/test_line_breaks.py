"""Steps before which the agent writes line breaks (reason/trajectory.py), on scripted engines."""

import re
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_reason import (  # noqa: F401  (fixtures)
    QUESTIONS,
    Scripted,
    agent_writes,
    noise,
    prompts,
    run,
    tokenizer,
)

from rationalyst_jax.reason.strategies import STRATEGIES
from rationalyst_jax.reason.trajectory import MOST_LINE_BREAKS

GUIDED = ("greedy", "random", "self_consistency", "likelihood", "implicit", "explicit", "best_of_n", "beam")


def breaks_before(context: str) -> int:
    """How many line breaks end a context, beyond that of its last step; a rationale has none."""
    rest = context.rstrip("\n")
    return len(context) - len(rest) - (not rest.endswith("<EOT>"))


def spaced(breaks):
    """An agent that writes line breaks, as many as `breaks` says, before each step; else `agent_writes`.

    Its steps do not depend on seeds, for a step after line breaks is asked for with another one.
    """

    def write(context, seed, place):
        settled = re.sub("\n+", "\n", context).replace("<EOT>\n", "<EOT>")
        if breaks_before(context) < breaks(settled):
            return "", "stop"
        return agent_writes(settled, 0, 0)

    return write


@pytest.mark.parametrize("strategy", GUIDED)
def test_a_step_is_what_follows_line_breaks(run, strategy):  # noqa: F811
    plain = run(strategy, agent=spaced(lambda context: 0))
    broken = run(strategy, agent=spaced(lambda context: noise("breaks", context) % (MOST_LINE_BREAKS + 1)))
    assert [trace.steps for trace in broken] == [trace.steps for trace in plain]
    assert [trace.answer for trace in broken] == [trace.answer for trace in plain]
    assert any(trace.answer for trace in plain)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(GUIDED)), st.integers(0, 2**16), st.integers(1, 4))
def test_no_step_is_empty_while_another_candidate_is_not(run, strategy, salt, n):  # noqa: F811
    """Whether a candidate is a line break, the end of the turn or a step is left to chance."""

    def write(context, seed, place):
        kind = noise(salt, context, seed, place) % 4
        if kind == 0:
            return agent_writes(context, seed, place)
        return ("  ", "stop") if kind == 1 else ("", "stop") if kind == 2 else ("so", "end")

    for trace in run(strategy, QUESTIONS[:2], agent=write, candidates=n, max_steps=4, step_end="line"):
        for step in trace.steps:
            assert step.text.strip() or not any(text.strip() for text in step.candidates)
            assert step.text.strip() or step is trace.steps[-1]


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_an_agent_that_writes_line_breaks_alone_is_given_up(run, strategy):  # noqa: F811
    traces = run(strategy, QUESTIONS[:1], agent=lambda *_: ("", "stop"), candidates=3)
    [trace] = traces
    assert [step.text for step in trace.steps] == [""]
    assert trace.finish == "end"
    assert len(run.agent.requests("generate")) <= 2 * (3 + 3 * MOST_LINE_BREAKS)


def test_what_is_asked_after_a_line_break_has_it_last_in_its_context_and_is_counted(run):  # noqa: F811
    def write(context, seed, place):
        if context.endswith("one\n\n"):
            return "The answer is 2.", "stop"
        return ("one", "stop") if "one" not in context else ("", "stop")

    [trace] = run("greedy", QUESTIONS[:1], agent=write)
    assert [step.text for step in trace.steps] == ["one", "The answer is 2."]
    contexts = [run.agent.text(request.context) for request in run.agent.requests("generate")]
    assert contexts[2] == contexts[1] + "\n"
    assert trace.tokens["agent"].flops == 3 * Scripted.flops(run.agent, None)


def test_a_line_break_stands_after_the_rationale_that_guides_the_step(run):  # noqa: F811
    def write(context, seed, place):
        return ("", "stop") if context.endswith("<EOT>") else ("The answer is 2.", "stop")

    [trace] = run("explicit", QUESTIONS[:1], agent=write)
    assert [step.text for step in trace.steps] == ["The answer is 2."]
    assert run.agent.text(run.agent.requests("generate")[-1].context).endswith("<EOT>\n")


def test_the_end_of_the_turn_stays_a_candidate(run):  # noqa: F811
    traces = run(
        "likelihood", QUESTIONS[:1], agent=lambda c, s, place: ("", "end") if place else ("on", "stop")
    )
    assert [trace.steps[0].candidates for trace in traces] == [("on", "", "")]


def test_each_blank_candidate_is_asked_again_with_a_seed_of_its_own(run):  # noqa: F811
    run("likelihood", QUESTIONS[:1], agent=lambda *_: ("", "stop"), max_steps=1, candidates=3)
    again = [request for request in run.agent.requests("generate") if request.n == 1]
    assert len(again) == 3 * MOST_LINE_BREAKS
    assert len({request.seed for request in again}) == len(again)
    assert {replace(request, seed=0).temperature for request in again} == {0.7}
