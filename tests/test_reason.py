"""The solve loop on scripted engines, whose every answer the tests can work out again; then on real parts."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from random_model import random_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rationalyst_jax.files.lock import locked
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import GenerateRequest, Generation, Handle
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.trees.likelihood import Pair, score
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.pipeline.models import Known
from rationalyst_jax.pipeline.reason import Cast, reason
from rationalyst_jax.prompts.prompt import load_demonstrations, load_prompts, render
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.solve import solve
from rationalyst_jax.reason.strategies import STRATEGIES
from rationalyst_jax.reason.traces import UNRATED, count_unrated, read_traces
from rationalyst_jax.reason.trajectory import Roles, _pieces
from rationalyst_jax.roles.role import Role
from rationalyst_jax.roles.usage import Usage
from rationalyst_jax.tasks.benchmarks import task_named
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.task import Task

PROMPTS = """
version: test-1
document: "Q: {question}\\n"
prompts:
  annotate: {messages: [{role: assistant, content: "{document}<|copy|>{annotated}<|end|>"}]}
  rationale: {messages: [{role: assistant, content: "{preceding}<BOT>{rationale}<EOT>"}]}
  follow: {messages: [{role: assistant, content: "{preceding}{following}"}]}
  follow_guided: {messages: [{role: assistant, content: "{preceding}<BOT>{rationale}<EOT>{following}"}]}
  step: {messages: [{role: assistant, content: "{preceding}{step}"}]}
  judge: {messages: [{role: assistant, content: "{preceding}<rate>{rating}"}]}
  step_guided: {messages: [{role: assistant, content: "{preceding}<BOT>{rationale}<EOT>{step}"}]}
"""
QUESTIONS = [Question(f"q{i}", f"how many, {i}? The answer is {i}.") for i in range(7)]


def noise(*parts) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def extract(step: str, question: Question) -> str | None:
    said, _, answer = step.rpartition("The answer is ")
    return answer.removesuffix(".") if answer != step and not said else None


def agent_writes(context, seed, place):
    if context.count("\n") - 1 < 2 + noise(context.split("\n")[0]) % 3:  # 2 to 4 steps before the answer
        return f"{'abcdef'[noise(seed, place) % 6]} is {noise(context) % 10}.", "stop"
    return f"The answer is {noise(seed, place) % 3}.", "stop"


def rationalyst_writes(context, seed, place):
    return f"so think of {noise(context) % 100}", "stop"


class Scripted:
    """An engine that writes `write(context, seed, place) -> (text, finish)` and records what it was asked."""

    positions: int | None = None
    tokens: int = 0

    def __init__(self, tokenizer, write=rationalyst_writes):
        self.tokenizer = tokenizer
        self.write = write
        self.calls = []
        self.waiting = []

    def text(self, ids):
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False).removeprefix("<s>")

    repeatable = True

    @property
    def busy(self):
        return bool(self.waiting)

    def submit(self, request):
        self.waiting.append(Handle(request))
        return self.waiting[-1]

    def step(self):
        """Answers all that waits, as one call of each kind."""
        handles = self.waiting
        self.waiting = []
        for kind, answer in (("generate", self.generate), ("score", self.score)):
            chosen = [h for h in handles if isinstance(h.request, GenerateRequest) == (kind == "generate")]
            if chosen:
                self.calls.append((kind, [handle.request for handle in chosen]))
            for handle in chosen:
                handle.result = answer(handle.request)
                handle.usage.prefilled = len(handle.request.context)
                if kind == "score":
                    handle.usage.scored = len(handle.request.continuation)
                else:
                    handle.usage.generated = sum(len(g.tokens) for g in handle.result)
        return handles

    def generate(self, request):
        return [self.generation(request, i) for i in range(request.n)]

    def generation(self, request, place):
        text, finish = self.write(self.text(request.context), request.seed, place)
        stop = request.stop[0] if finish == "stop" and request.stop else ""
        if finish in request.stop:  # a script may say which
            text = text.removesuffix(finish)
            stop = finish
            finish = "stop"
        return Generation((0,) * len(text), np.zeros(len(text)), text, finish, stop)

    def score(self, request):
        return logprobs_of(self.text(request.context), self.text(request.continuation))

    def cancel(self, handle):
        self.waiting = [other for other in self.waiting if other is not handle]

    def flops(self, handle):
        return 7

    def forget(self):
        pass

    def requests(self, method):
        return [request for name, requests in self.calls if name == method for request in requests]


def logprobs_of(context, continuation):
    """What the scripted scorer gives, one value a character: any function of the two texts will do."""
    return -np.array([noise(context, c, i) % 1000 for i, c in enumerate(continuation)]) / 1000


@pytest.fixture(scope="module")
def tokenizer():
    """One token a character, plus the markers; its chat template is BOS and the plain contents."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(letters))}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens(["<BOT>", "<EOT>", "<|copy|>", "<|end|>"])
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "test.yaml"
    path.write_text(PROMPTS)
    return load_prompts(path)


@pytest.fixture
def run(tokenizer, prompts, tmp_path):
    """Solves with scripted roles; `run.roles` are those of the last run."""

    def run(
        strategy,
        questions=QUESTIONS,
        *,
        agent=agent_writes,
        rationalyst=rationalyst_writes,
        scorer=rationalyst_writes,
        engine=Scripted,
        **config,
    ):
        engines = [engine(tokenizer, write) for write in (agent, rationalyst, scorer)]
        run.roles = Roles(*(Role(engine, tokenizer) for engine in engines))
        run.agent, run.rationalyst, run.scorer = engines
        run.path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        traces = solve(questions, run.roles, prompts, ReasonConfig(strategy, **config), extract, run.path)
        return [replace(trace, seconds=0.0) for trace in traces]

    return run


def lines(path):
    """The rows of a file of traces, without the seconds."""
    return [{**json.loads(line), "seconds": 0.0} for line in path.read_text().splitlines()]


def document(question, steps):
    return f"Q: {question.text}\n" + "".join(step + "\n" for step in steps)


def decayed_means(context, candidates):
    """Each candidate's value, worked out from the definition."""
    values = [logprobs_of(context, text + "\n") for text in candidates]
    return [np.average(v, weights=0.9 ** np.arange(len(v))) for v in values]


def test_implicit_takes_the_step_most_likely_under_the_rationale(run):
    ranked = 0
    for question, trace in zip(QUESTIONS, run("implicit", max_steps=6), strict=True):
        for i, step in enumerate(trace.steps):
            preceding = document(question, [s.text for s in trace.steps[:i]])
            assert step.rationale == rationalyst_writes(preceding + "<BOT>", 0, 0)[0]
            context = f"{preceding}<BOT>{step.rationale}<EOT>"
            scores = decayed_means(context, step.candidates)
            assert step.text == step.candidates[step.choice] == step.candidates[int(np.argmax(scores))]
            if len(set(step.candidates)) > 1:
                ranked += 1
                assert step.scores == pytest.approx(scores) and step.guided
            else:
                assert step.scores is None and not step.guided
    assert ranked > 5
    assert not any("<BOT>" in run.agent.text(request.context) for request in run.agent.requests("generate"))


def test_likelihood_ranks_without_any_rationale(run):
    [trace] = run("likelihood", QUESTIONS[:1])
    assert not run.rationalyst.calls
    for i, step in enumerate(trace.steps):
        context = document(QUESTIONS[0], [s.text for s in trace.steps[:i]])
        scores = decayed_means(context, step.candidates)
        assert step.choice == int(np.argmax(scores))


def test_the_scorer_reduces_as_asked(run):
    [trace] = run("likelihood", QUESTIONS[:1], reduction="sum", max_steps=1)
    context = document(QUESTIONS[0], [])
    [step] = trace.steps
    assert step.scores == pytest.approx([logprobs_of(context, c + "\n").sum() for c in step.candidates])


def test_explicit_shows_the_agent_the_rationale_for_this_step_only(run):
    [trace] = run("explicit", QUESTIONS[:1])
    contexts = [run.agent.text(request.context) for request in run.agent.requests("generate")]
    for i, (step, context) in enumerate(zip(trace.steps, contexts, strict=True)):
        preceding = document(QUESTIONS[0], [s.text for s in trace.steps[:i]])
        assert context == f"{preceding}<BOT>{step.rationale}<EOT>" and step.guided
    assert len(contexts) > 2 and not run.scorer.calls


def test_random_takes_each_candidate_about_equally_often(run):
    questions = [Question(str(i), str(i)) for i in range(300)]
    traces = run("random", questions, agent=lambda *_: ("a step", "stop"), max_steps=1)
    taken = Counter(trace.steps[0].choice for trace in traces)
    assert sorted(taken) == [0, 1, 2] and min(taken.values()) > 70


def test_greedy_asks_for_one_step_at_temperature_zero(run):
    run("greedy")
    assert {(request.n, request.temperature) for request in run.agent.requests("generate")} == {(1, 0)}


def test_strategies_see_the_same_candidates_while_their_trajectories_agree(run):
    traces = [run(strategy) for strategy in ("random", "likelihood", "implicit")]
    agreed = 0
    for one, *others in zip(*traces, strict=True):
        for other in others:
            for mine, theirs in zip(one.steps, other.steps, strict=False):
                assert mine.candidates == theirs.candidates
                agreed += 1
                if mine.text != theirs.text:
                    break
    assert agreed > 2 * len(QUESTIONS)


def test_a_question_is_solved_alike_whoever_its_neighbours_are(run):
    for strategy in STRATEGIES:
        together = run(strategy)
        assert run(strategy, block=2) == together
        assert run(strategy, list(reversed(QUESTIONS)))[::-1] == together


def test_another_seed_draws_other_candidates(run):
    assert run("random") != run("random", seed=1)


def test_equal_candidates_are_scored_once_or_not_at_all(run):
    def two_of_three(context, seed, place):
        return ("same" if place < 2 else "other"), "stop"

    [trace] = run("likelihood", QUESTIONS[:1], agent=two_of_three, max_steps=1)
    assert len(run.scorer.requests("score")) == 2
    assert trace.steps[0].scores is not None and trace.steps[0].scores[0] == trace.steps[0].scores[1]
    [trace] = run("likelihood", QUESTIONS[:1], agent=lambda *_: ("same", "stop"), max_steps=2)
    assert not run.scorer.calls and "scorer" not in trace.tokens
    assert trace.tokens["agent"].generated == 2 * 3 * len("same")


def test_an_empty_rationale_falls_back_to_none_and_a_cut_one_is_used_and_flagged(run):
    traces = run("implicit", rationalyst=lambda *_: (" ", "stop"))
    plain = run("likelihood")
    for ours, theirs in zip(traces, plain, strict=True):
        assert [step.scores for step in ours.steps] == [step.scores for step in theirs.steps]
        assert not any(step.guided for step in ours.steps) and ours.steps[0].rationale == " "
    [trace] = run("explicit", QUESTIONS[:1], rationalyst=lambda *_: ("", "end"), max_steps=1)
    assert run.agent.text(run.agent.requests("generate")[0].context) == document(QUESTIONS[0], [])
    [trace] = run("explicit", QUESTIONS[:1], rationalyst=lambda *_: ("so we", "length"), max_steps=1)
    assert (trace.steps[0].rationale_finish, trace.steps[0].guided) == ("length", True)


def test_the_answer_is_looked_for_in_the_new_step_only(run):
    # Every question holds "The answer is"; only a step that says so ends the trajectory, and at once.
    for trace in run("random"):
        assert not any(extract(step.text, QUESTIONS[0]) for step in trace.steps[:-1])
        assert trace.finish == "answer" and trace.answer == extract(trace.steps[-1].text, QUESTIONS[0])


def test_an_answer_that_cannot_be_read_stays_unanswered(run):
    [trace] = run("greedy", QUESTIONS[:1], agent=lambda *_: ("Answer: who knows", "end"))
    assert (trace.answer, trace.finish, len(trace.steps)) == (None, "end", 1)


@pytest.mark.parametrize(
    ("wrote", "finish", "steps"),
    [(("", "stop"), "end", 1), (("a step", "end"), "end", 1), (("a step", "stop"), "max_steps", 4)],
)
def test_a_trajectory_ends_with_an_empty_step_the_agents_turn_or_the_last_step(run, wrote, finish, steps):
    [trace] = run("random", QUESTIONS[:1], agent=lambda *_: wrote, max_steps=4)
    assert (trace.finish, len(trace.steps), trace.answer) == (finish, steps, None)


def test_an_empty_candidate_is_scored_by_its_line_break(run):
    def mostly_empty(context, seed, place):
        return ("", "end") if place else ("a step", "stop")

    run("likelihood", QUESTIONS[:1], agent=mostly_empty, max_steps=1)
    scored = [run.scorer.text(request.continuation) for request in run.scorer.requests("score")]
    assert scored == ["a step\n", "\n"]


@pytest.mark.parametrize(
    ("answers", "majority"),
    [("12221", "2"), ("3113", "3"), ("?44??", "4"), ("???", None)],
    ids=["majority", "tie goes to the first seen", "unanswered don't vote", "nobody answers"],
)
def test_self_consistency_takes_the_majority_of_whole_solutions(run, answers, majority):
    ways: dict[int, int] = {}

    def sample(context, seed, place):
        if context.count("\n") == 1:
            return f"way {ways.setdefault(seed, len(ways))}", "stop"
        way = int(context.rstrip("\n").rsplit(" ", 1)[1])
        return (f"The answer is {answers[way]}." if answers[way] != "?" else "lost"), "end"

    [trace] = run("self_consistency", QUESTIONS[:1], agent=sample, candidates=len(answers))
    assert trace.answer == majority
    assert [s.answer for s in trace.samples] == [None if a == "?" else a for a in answers]
    winner = answers.index(majority or "?")
    assert trace.samples[winner].steps == tuple(step.text for step in trace.steps)
    assert len(ways) == len(answers)  # each solution draws noise of its own


def test_tokens_are_counted_per_role(run):
    [trace] = run("implicit", QUESTIONS[:1])
    opening = 1 + len(document(QUESTIONS[0], []))  # with BOS
    agent = rationalyst = scored = scoring = requests = 0
    for step in trace.steps:
        rationalyst += opening + 1
        agent += opening
        if step.scores is not None:
            for text in set(step.candidates):
                requests += 1
                scoring += opening + len(step.rationale or "") + 2
                scored += len(text) + 1
        opening += len(step.text) + 1
    steps = len(trace.steps)
    generated = sum(len(text) for step in trace.steps for text in step.candidates)
    assert trace.tokens["agent"] == Usage(steps, generated, prefilled=agent, flops=7 * steps)
    assert trace.tokens["scorer"] == Usage(requests, 0, scoring, 0, scored, 7 * requests)
    wrote = sum(len(step.rationale or "") for step in trace.steps)
    assert trace.tokens["rationalyst"] == Usage(steps, wrote, prefilled=rationalyst, flops=7 * steps)


def test_the_driver_asks_for_all_questions_at_once(run):
    traces = run("implicit")
    assert len(run.rationalyst.calls[0][1]) == len(run.agent.calls[0][1]) == len(QUESTIONS)
    longest = max(len(trace.steps) for trace in traces)
    assert len(run.agent.calls) <= 2 * longest  # those that skip scoring run ahead


def test_markers_are_suppressed_for_agent_and_scorer_but_not_rationalyst(run, tokenizer):
    run("implicit", QUESTIONS[:2], suppress=("<BOT>", "<EOT>"))
    markers = tuple(tokenizer.convert_tokens_to_ids(["<BOT>", "<EOT>"]))
    assert {request.suppress for request in run.agent.requests("generate")} == {markers}
    assert {request.suppress for request in run.scorer.requests("score")} == {markers}
    assert {request.suppress for request in run.rationalyst.requests("generate")} == {()}
    assert {request.stop for request in run.rationalyst.requests("generate")} == {("<EOT>",)}
    with pytest.raises(ValueError, match=r"suppress: '<NOPE>' is .* not one"):
        run("greedy", QUESTIONS[:1], suppress=("<NOPE>",))


def test_rationale_confidence_takes_the_step_after_which_rationalyst_is_surest(run, tokenizer):
    def write(context, seed, place):
        return f"so think of {noise(context) % 100}", "stop"

    class Sure(Scripted):
        def generation(self, request, place):
            generation = super().generation(request, place)
            return replace(generation, logprobs=logprobs_of(self.text(request.context), generation.text))

    traces = run("rationale_confidence", rationalyst=write, engine=Sure, max_steps=4)
    ranked = 0
    for question, trace in zip(QUESTIONS, traces, strict=True):
        for i, step in enumerate(trace.steps):
            if step.scores is None:
                continue
            ranked += 1
            preceding = document(question, [s.text for s in trace.steps[:i]])
            contexts = [f"{preceding}{text}\n<BOT>" for text in step.candidates]
            wrote = [write(context, 0, 0)[0] for context in contexts]
            assert step.notes == tuple(wrote) and not step.guided and step.rationale is None
            sure = [logprobs_of(c, text).mean() for c, text in zip(contexts, wrote, strict=True)]
            assert step.scores == pytest.approx(sure) and step.choice == int(np.argmax(sure))
    assert ranked > 5


@pytest.mark.parametrize(
    ("words", "rating"),
    [
        *[("2", 2), (" 3 of 3", 3), ("2 out of 3", 2), ("3/3", 3), ("3 / 3.", 3), ("2.0", 2), ("2.", 2)],
        *[("Rating: 1.", 1), ("**Rating:** 3", 3), ("**2**", 2), ("My rating is 2", 2), ("score = (1)", 1)],
        *[(words, UNRATED) for words in ("20 / 3 = 6", "3 + 3", "10", "4", "-1", "2.5", "1.5", "3/4")],
        *[(words, UNRATED) for words in ("none", "", " ", "two", "Step 2 is right", "2 apples", "2 or 3")],
    ],
)
def test_a_judge_rates_from_0_to_3_and_what_is_no_rating_counts_as_the_middle(run, words, rating):
    def judged(context, seed, place):
        return ("0" if "bad" in context else words), "stop"

    def agent(context, seed, place):
        return ("good" if place else "bad"), "stop"

    [trace] = run("judge", QUESTIONS[:1], agent=agent, scorer=judged, candidates=2, max_steps=1)
    [step] = trace.steps
    assert step.scores == (0, rating) and step.notes == ("0", words)
    assert step.text == ("good" if rating > 0 else "bad")
    assert count_unrated([trace]) == (int(rating == UNRATED), 2)
    [context] = {
        run.scorer.text(r.context)
        for r in run.scorer.requests("generate")
        if "good" in run.scorer.text(r.context)
    }
    assert context == document(QUESTIONS[0], ["good"]) + "<rate>"


def test_of_candidates_that_no_verdict_rates_the_first_is_taken(run):
    words = {"first": "20 / 3 = 6", "second": "3 apples", "third": "I see"}

    def judged(context, seed, place):
        return next(verdict for text, verdict in words.items() if text in context), "stop"

    def agent(context, seed, place):
        return list(words)[place], "stop"

    [trace] = run("judge", QUESTIONS[:1], agent=agent, scorer=judged, candidates=3, max_steps=1)
    [step] = trace.steps
    assert step.text == "first" and step.scores == (UNRATED,) * 3 and step.notes == tuple(words.values())
    assert count_unrated([trace]) == (3, 3)


def solution_scores(question, steps):
    """The scripted score of each step of a solution, without rationales."""
    scores = []
    for i, text in enumerate(steps):
        scores += decayed_means(document(question, steps[:i]), [text])
    return scores


def test_best_of_n_takes_the_whole_solution_with_the_best_mean_score(run):
    for question, trace in zip(QUESTIONS, run("best_of_n", guide="likelihood"), strict=True):
        means = [np.mean(solution_scores(question, list(sample.steps))) for sample in trace.samples]
        assert len(means) == 3
        assert tuple(step.text for step in trace.steps) == trace.samples[int(np.argmax(means))].steps
        assert [step.scores[0] for step in trace.steps] == pytest.approx(
            solution_scores(question, [step.text for step in trace.steps])
        )


def test_beam_of_all_paths_finds_the_best_one(run):
    """With as many beams as there are paths nothing is lost: the winner is the best of all of them."""

    def agent(context, seed, place):
        if context.count("\n") < 3:
            return "ab"[place], "stop"
        return f"The answer is {'xy'[place]}.", "end"

    [trace] = run("beam", QUESTIONS[:1], agent=agent, candidates=2, beams=8, guide="likelihood")
    paths = [(a, b, f"The answer is {c}.") for a in "ab" for b in "ab" for c in "xy"]
    assert {sample.steps for sample in trace.samples} == set(paths)

    def value(path):
        *before, last = path
        means = solution_scores(QUESTIONS[0], before)
        logprobs = logprobs_of(document(QUESTIONS[0], before), last)  # the end of a turn has no line break
        return np.mean([*means, np.average(logprobs, weights=0.9 ** np.arange(len(logprobs)))])

    assert tuple(step.text for step in trace.steps) == max(paths, key=value)
    assert [s.steps for s in trace.samples] == sorted(paths, key=value, reverse=True)


def test_a_narrow_beam_keeps_the_best_partial_solutions(run):
    [trace] = run("beam", QUESTIONS[:1], candidates=3, beams=1, guide="implicit")
    for step in trace.steps:
        assert step.scores is not None and step.choice == int(np.argmax(step.scores)) and step.guided


def test_explicit_can_keep_the_rationales_of_earlier_steps(run, tokenizer):
    [trace] = run("explicit", QUESTIONS[:1], keep_rationales=True)
    history = document(QUESTIONS[0], [])
    for step, request in zip(trace.steps, run.agent.requests("generate"), strict=True):
        history += f"<BOT>{step.rationale}<EOT>"
        assert run.agent.text(request.context) == history
        assert tokenizer.convert_tokens_to_ids("<BOT>") in request.context  # the marker, not its spelling
        history += step.text + "\n"
    for request in run.rationalyst.requests("generate"):
        assert run.rationalyst.text(request.context).count("<BOT>") == 1


def test_a_step_may_be_a_sentence_or_a_turn(run):
    def sentences(context, seed, place):
        assert context.endswith(("\n", " "))
        return ("So it is. ", ". ") if context.count(".") < 4 else ("The answer is 1", "\n")

    [trace] = run("greedy", QUESTIONS[:1], agent=sentences, step_end="sentence")
    *before, last = trace.steps
    assert [(step.text, step.end) for step in before] == [("So it is.", " ")] * len(before)
    assert (last.text, last.end, trace.answer) == ("The answer is 1", "\n", "1")

    def turns(context, seed, place):
        return ("Let me see.\nTwo lines." if "Two" not in context else "The answer is 2."), "end"

    [trace] = run("greedy", QUESTIONS[:1], agent=turns, step_end="turn")
    assert [step.text for step in trace.steps] == ["Let me see.\nTwo lines.", "The answer is 2."]
    assert (trace.answer, run.agent.requests("generate")[0].stop) == ("2", ())


def test_a_request_that_a_model_refuses_fails_its_question_alone(run, prompts):
    whole = run("greedy")
    refusing = run.agent.submit

    def submit(request):
        if QUESTIONS[2].text in run.agent.text(request.context) and "is" in run.agent.text(request.context):
            raise ValueError("the request may need 9 pages, the cache has 8")
        return refusing(request)

    run.agent.submit = submit
    path = run.path.with_name("refused.jsonl")
    arguments = QUESTIONS, run.roles, prompts, ReasonConfig("greedy"), extract, path
    with pytest.raises(ValueError, match=r"1 of 7 questions failed, as question q2: the request may need 9"):
        solve(*arguments)
    assert {row["id"] for row in lines(path)} == {trace.id for trace in whole} - {"q2"}
    run.agent.submit = refusing
    assert [replace(trace, seconds=0.0) for trace in solve(*arguments)] == whole


class Killed(Exception):
    pass


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_run_resumes_to_the_same_lines(strategy, run, prompts):
    def die_on_the_second_step_of_q4(context, seed, place):
        if context.startswith(f"Q: {QUESTIONS[4].text}") and context.count("\n") > 1:
            raise Killed
        return agent_writes(context, seed, place)

    run(strategy, block=3)
    whole = lines(run.path)
    with pytest.raises(Killed):
        run(strategy, block=3, agent=die_on_the_second_step_of_q4)
    assert 3 <= len(lines(run.path)) < 6 and all(line in whole for line in lines(run.path))
    run.agent.write = agent_writes
    told: list[tuple[int, int, int]] = []
    config = ReasonConfig(strategy, block=3)
    solve(QUESTIONS, run.roles, prompts, config, extract, run.path, lambda *counts: told.append(counts))
    assert lines(run.path) == whole
    assert told[0][0] >= 3 and told[-1][:2] == (len(QUESTIONS), len(QUESTIONS)) and told == sorted(told)


def test_part_of_a_block_or_of_a_line_is_redone(run, prompts, tmp_path):
    run("implicit", block=3)
    whole = run.path.read_bytes()
    expected = lines(run.path)
    rows = whole.splitlines(keepends=True)
    config = ReasonConfig("implicit", block=3)
    for left in (b"".join(rows[:5]), b"".join(rows[:3]) + rows[3][:40], whole[:-1], b""):
        run.path.write_bytes(left)
        asked = len(run.agent.requests("generate"))
        told: list[tuple[int, int, int]] = []

        def tell(*counts: int, told: list = told) -> None:
            told.append(counts)

        solve(QUESTIONS, run.roles, prompts, config, extract, run.path, tell)
        assert lines(run.path) == expected
        assert told[0][0] == left.count(b"\n") and told[-1][0] == len(QUESTIONS)
        assert len(run.agent.requests("generate")) > asked
    run.agent.calls.clear()
    assert len(solve(QUESTIONS, run.roles, prompts, config, extract, run.path)) == 7
    assert not run.agent.calls  # a finished run asks nothing


def test_traces_are_one_json_line_per_question(run):
    traces = run("implicit")
    rows = [json.loads(line) for line in run.path.read_text().splitlines()]
    rows.sort(key=lambda row: row["id"])
    assert [row["id"] for row in rows] == [question.id for question in QUESTIONS]
    assert [trace.id for trace in traces] == [question.id for question in QUESTIONS]
    assert rows[0]["steps"][0]["candidates"] == list(traces[0].steps[0].candidates)
    assert rows[0]["tokens"]["agent"]["generated"] == traces[0].tokens["agent"].generated


class ScriptedModels:
    """Stands for `Models`: three scripted roles, which count as opened when they are asked for."""

    def __init__(self, roles: Roles):
        self.roles_at = {"agent": roles.agent, "rationalyst": roles.rationalyst, "scorer": roles.scorer}
        self.opened = []

    def known(self, place):
        return Known(self.roles_at[place].name, self.roles_at[place].tokenizer)

    def check(self, place, prompts, names, suppress=()):
        pass

    def roles(self, *places):
        self.opened += places
        return [self.roles_at[place] for place in places]


@pytest.fixture
def stage(run, prompts, tmp_path):
    """The stage `reason` with scripted models; `stage.models` are those of the last call."""

    def stage(questions=QUESTIONS, roles=None, limit=None, **config):
        stage.models = ScriptedModels(roles or run.roles)

        class Asked(Task):
            def read(self, path):
                return [*questions]

        task = Asked(**{**vars(task_named("gsm8k")), "extract": extract})
        cast = Cast("agent", "rationalyst", "scorer")
        models: Any = stage.models
        config = ReasonConfig("random", **config)
        return reason(tmp_path, task, cast, models, prompts, config, stage.path, limit=limit)

    stage.path = tmp_path / "stage.jsonl"
    return stage


def test_traces_made_with_other_settings_are_refused_by_the_key_that_differs(run, stage):
    run("random")
    stage()
    before = stage.path.read_bytes()
    with pytest.raises(ValueError, match=r"made with other settings: temperature 0.7 -> 0.5"):
        stage(temperature=0.5)
    with pytest.raises(ValueError, match=r"other settings: agent '' -> 'another'"):
        stage(roles=replace(run.roles, agent=replace(run.roles.agent, name="another")))
    with locked(stage.path), pytest.raises(ValueError, match=r"stage.jsonl: process \d+ is writing it"):
        stage()
    assert stage.path.read_bytes() == before and not stage.models.opened
    stage.path.write_bytes(before.replace(b'"finish"', b'"fin"', 1))
    with pytest.raises(ValueError, match="jsonl:1: not a trace"):
        stage()
    stage.path.with_name(stage.path.name + ".config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json: is missing"):
        stage()


def test_a_limit_is_no_other_setting(run, stage):
    run("random")
    whole = {row["id"]: row for row in lines(run.path)}
    assert stage(limit=2).questions == 2
    run.agent.calls.clear()
    assert stage().questions == 7
    assert {row["id"]: row for row in lines(stage.path)} == whole
    run.agent.calls.clear()
    assert stage(limit=3).questions == 3 and not run.agent.calls
    assert len(lines(stage.path)) == 7  # what was done is not lost
    for limit in (0, -1):
        with pytest.raises(ValueError, match=f"reason: limit must be at least 1, got {limit}"):
            stage(limit=limit)


def test_a_question_that_was_mended_is_solved_again_and_the_others_are_kept(run, stage):
    run("random")
    stage()
    before = stage.path.read_bytes().splitlines()
    mended = [*QUESTIONS]
    mended[3] = replace(mended[3], text="how many apples?")
    stage(mended)
    after = stage.path.read_bytes().splitlines()
    assert [i for i in range(7) if before[i] != after[i]] == [3] and len(after) == 7
    assert json.loads(after[3])["id"] == "q3"
    others = [replace(question, text=f"{question.text} Or not?") for question in QUESTIONS]
    with pytest.raises(ValueError, match=r"stage\.jsonl: holds traces of other questions alone"):
        stage(others)
    assert stage.path.read_bytes().splitlines() == after


def test_bad_requests_are_refused_before_any_work(run, prompts):
    with pytest.raises(ValueError, match="no strategy 'wizard', only greedy, random"):
        run("wizard")
    with pytest.raises(ValueError, match="'q0' is given twice"):
        run("greedy", [QUESTIONS[0], QUESTIONS[0]])
    run("greedy", QUESTIONS[:1])
    alone = replace(run.roles, rationalyst=None)
    with pytest.raises(
        ValueError, match="'implicit' by implicit needs a rationalyst; without one there are greedy"
    ):
        solve(QUESTIONS, alone, prompts, ReasonConfig("implicit"), extract, run.path)
    bad = {
        "candidates": 0,
        "temperature": -1.0,
        "top_p": 0.0,
        "decay": 1.1,
        "step_end": "page",
        "guide": "map",
    }
    for key, value in bad.items():
        with pytest.raises(ValueError, match=key):
            ReasonConfig(**{key: value})
    with pytest.raises(ValueError, match="unknown reduction 'median'"):
        ReasonConfig(reduction="median")  # pyright: ignore[reportArgumentType]


def test_a_score_that_is_no_number_is_reported_not_ranked(run, prompts):
    run("likelihood", QUESTIONS[:1])
    run.scorer.score = lambda request: np.array([np.nan])
    path = run.path.with_name("nan.jsonl")
    with pytest.raises(
        ValueError, match="1 of 1 questions failed, as question q0: the scorer gives nan to step"
    ):
        solve(QUESTIONS[:1], run.roles, prompts, ReasonConfig("likelihood"), extract, path)


def test_the_real_parts_take_a_real_question_together(shared, tmp_path):
    """A random Llama on the real tokenizer answers nothing, but each of its choices can be checked."""
    tokenizer = load_tokenizer(shared / "llama3_tokenizer")
    shape = LlamaConfig(128256, 8, 8, 1, 2, 1, 4, max_position_embeddings=1024, eos_token_id=128001)
    model = random_llama(shape)
    role = Role(Engine(model, tokenizer, max_sequences=8, prefill_chunks=1, chunk_size=128), tokenizer)
    roles = Roles(role, role, role)
    prompts = load_prompts("llama3").shown(load_demonstrations("gsm8k"))
    with open(shared / "gsm8k" / "test.jsonl") as lines:
        question = Question("0", json.loads(next(lines))["question"])
    config = ReasonConfig("implicit", max_steps=2, max_step_tokens=8, max_rationale_tokens=8)
    [trace] = solve([question], roles, prompts, config, extract, tmp_path / "traces.jsonl")

    assert trace.answer is None and trace.finish == "max_steps" and len(trace.steps) == 2
    preceding = f"Question: {question.text}\nAnswer: "
    for step in trace.steps:
        fields = {"preceding": preceding, "rationale": step.rationale or ""}
        pairs = [
            Pair(*render(tokenizer, prompts["follow_guided"], fields, target=f"{text}\n", close=False))
            for text in step.candidates
        ]
        alone = [scores[0] for scores in score(model, [[pair] for pair in pairs], row_length=512).result()]
        means = [np.average(v, weights=0.9 ** np.arange(len(v))) for v in alone]
        assert step.scores == pytest.approx(means, abs=1e-4)
        assert step.choice == int(np.argmax(means))
        preceding += step.text + "\n"


def test_recorded_gains_are_the_tokens_log_probabilities_with_and_without_the_rationale(run):
    plain = run("implicit", max_steps=4)
    asked = len(run.scorer.requests("score"))
    traces = run("implicit", max_steps=4, record_gains=True)
    assert len(run.scorer.requests("score")) == 2 * asked
    recorded = 0
    for question, trace, unrecorded in zip(QUESTIONS, traces, plain, strict=True):
        bare = [replace(step, scores_without=None, gains=None) for step in trace.steps]
        assert replace(trace, steps=tuple(bare)) == unrecorded  # nothing else differs, the ledger neither
        for i, step in enumerate(trace.steps):
            assert (step.gains is None) == (step.scores is None)
            if step.gains is None:
                continue
            recorded += 1
            preceding = document(question, [s.text for s in trace.steps[:i]])
            context = f"{preceding}<BOT>{step.rationale}<EOT>"
            assert step.scores_without == pytest.approx(decayed_means(preceding, step.candidates))
            for text, of in zip(step.candidates, step.gains, strict=True):
                assert "".join(of.tokens) == text + "\n"
                assert of.logprobs_with == pytest.approx(logprobs_of(context, text + "\n"), abs=1e-4)
                assert of.logprobs_without == pytest.approx(logprobs_of(preceding, text + "\n"), abs=1e-4)
    assert recorded
    assert [replace(trace, seconds=0.0) for trace in read_traces(run.path)] == traces


def test_a_letter_of_several_tokens_is_a_piece_of_the_last_one(tokenizer):
    ids = tokenizer("a 𝒳 é", add_special_tokens=False)["input_ids"]
    pieces = _pieces(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids) and not any("\ufffd" in piece for piece in pieces)
