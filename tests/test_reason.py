"""The solve loop on scripted engines, whose every answer the tests can work out again; then on real parts."""

import hashlib
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rationalyst_jax.lm.config import LlamaConfig
from rationalyst_jax.lm.generate import Engine, Generation
from rationalyst_jax.lm.likelihood import Pair, score
from rationalyst_jax.lm.llama import Llama
from rationalyst_jax.lm.prompt import load_prompts, render
from rationalyst_jax.lm.tokenizer import load_tokenizer
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.roles import Role, Roles
from rationalyst_jax.reason.solve import solve
from rationalyst_jax.reason.strategies import STRATEGIES
from rationalyst_jax.reason.trajectory import Question

PROMPTS = """
version: test-1
document: "Q: {question}\\n"
prompts:
  annotate: {messages: [{role: assistant, content: "{document}<|copy|>{annotated}<|end|>"}]}
  rationale: {messages: [{role: assistant, content: "{preceding}<BOT>{rationale}<EOT>"}]}
  follow: {messages: [{role: assistant, content: "{preceding}{following}"}]}
  follow_guided: {messages: [{role: assistant, content: "{preceding}<BOT>{rationale}<EOT>{following}"}]}
  step: {messages: [{role: assistant, content: "{preceding}{step}"}]}
  step_guided: {messages: [{role: assistant, content: "{preceding}<BOT>{rationale}<EOT>{step}"}]}
"""
QUESTIONS = [Question(f"q{i}", f"how many, {i}? The answer is {i}.") for i in range(7)]


def noise(*parts) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def extract(step: str) -> str | None:
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

    def __init__(self, tokenizer, write=rationalyst_writes):
        self.tokenizer = tokenizer
        self.write = write
        self.calls = []

    def text(self, ids):
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False).removeprefix("<s>")

    def generate(self, requests):
        self.calls.append(("generate", list(requests)))
        return [[self.generation(request, i) for i in range(request.n)] for request in requests]

    def generation(self, request, place):
        text, finish = self.write(self.text(request.context), request.seed, place)
        return Generation((0,) * len(text), np.zeros(len(text)), text, finish)

    def score(self, requests):
        self.calls.append(("score", list(requests)))
        return [logprobs_of(self.text(r.context), self.text(r.continuation)) for r in requests]

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

    def run(strategy, questions=QUESTIONS, *, agent=agent_writes, rationalyst=rationalyst_writes, **config):
        engines = [Scripted(tokenizer, agent), Scripted(tokenizer, rationalyst), Scripted(tokenizer)]
        run.roles = Roles(*(Role(engine, tokenizer) for engine in engines))
        run.agent, run.rationalyst, run.scorer = engines
        run.path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        return solve(questions, run.roles, prompts, ReasonConfig(strategy, **config), extract, run.path)

    return run


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
        assert not any(extract(step.text) for step in trace.steps[:-1])
        assert trace.finish == "answer" and trace.answer == extract(trace.steps[-1].text)


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
        return ("" if place else "a step"), "stop"

    run("likelihood", QUESTIONS[:1], agent=mostly_empty, max_steps=1)
    scored = [run.scorer.text(request.continuation) for request in run.scorer.requests("score")]
    assert scored == ["a step\n", "\n"]


@pytest.mark.parametrize(
    ("answers", "majority"),
    [("12221", "2"), ("3113", "3"), ("?44??", "4"), ("???", None)],
    ids=["majority", "tie goes to the first seen", "unanswered don't vote", "nobody answers"],
)
def test_self_consistency_takes_the_majority_of_whole_solutions(run, answers, majority):
    def sample(context, seed, place):
        if context.count("\n") == 1:
            return f"way {place}", "stop"
        way = int(context.rstrip("\n").rsplit(" ", 1)[1])
        return (f"The answer is {answers[way]}." if answers[way] != "?" else "lost"), "end"

    [trace] = run("self_consistency", QUESTIONS[:1], agent=sample, candidates=len(answers))
    assert trace.answer == majority
    assert [s.answer for s in trace.samples] == [None if a == "?" else a for a in answers]
    winner = answers.index(majority or "?")
    assert trace.samples[winner].steps == tuple(step.text for step in trace.steps)
    # All solutions share the first request; different ones draw different noise afterwards.
    first, *later = run.agent.requests("generate")
    assert first.n == len(answers) and len({request.seed for request in later}) == len(answers)


def test_tokens_are_counted_per_role(run):
    [trace] = run("implicit", QUESTIONS[:1])
    opening = 1 + len(document(QUESTIONS[0], []))  # with BOS
    agent = rationalyst = scored = scoring = 0
    for step in trace.steps:
        rationalyst += opening + 1
        agent += opening
        if step.scores is not None:
            scoring += opening + len(step.rationale or "") + 2
            scored += sum(len(text) + 1 for text in set(step.candidates))
        opening += len(step.text) + 1
    generated = sum(len(text) for step in trace.steps for text in step.candidates)
    assert vars(trace.tokens["agent"]) == {"generated": generated, "prefilled": agent, "scored": 0}
    assert vars(trace.tokens["scorer"]) == {"generated": 0, "prefilled": scoring, "scored": scored}
    wrote = sum(len(step.rationale or "") for step in trace.steps)
    assert vars(trace.tokens["rationalyst"]) == {"generated": wrote, "prefilled": rationalyst, "scored": 0}


def test_the_driver_asks_for_all_questions_at_once(run):
    traces = run("implicit")
    assert len(run.rationalyst.calls[0][1]) == len(run.agent.calls[0][1]) == len(QUESTIONS)
    # Questions that skip scoring wait for the others: one batch of each kind per step, no more.
    longest = max(len(trace.steps) for trace in traces)
    assert len(run.agent.calls) == len(run.rationalyst.calls) == longest
    assert len(run.scorer.calls) <= longest


def test_markers_are_suppressed_for_agent_and_scorer_but_not_rationalyst(run, tokenizer):
    run("implicit", QUESTIONS[:2], suppress=("<BOT>", "<EOT>"))
    markers = tuple(tokenizer.convert_tokens_to_ids(["<BOT>", "<EOT>"]))
    assert {request.suppress for request in run.agent.requests("generate")} == {markers}
    assert {request.suppress for request in run.scorer.requests("score")} == {markers}
    assert {request.suppress for request in run.rationalyst.requests("generate")} == {()}
    assert {request.stop for request in run.rationalyst.requests("generate")} == {("<EOT>",)}
    with pytest.raises(ValueError, match=r"suppress: '<NOPE>' is .* not one"):
        run("greedy", QUESTIONS[:1], suppress=("<NOPE>",))


class Killed(Exception):
    pass


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_run_resumes_to_the_same_bytes(strategy, run, prompts):
    def die_on_the_second_step_of_q4(context, seed, place):
        if context.startswith(f"Q: {QUESTIONS[4].text}") and context.count("\n") > 1:
            raise Killed
        return agent_writes(context, seed, place)

    run(strategy, block=3)
    whole = run.path.read_bytes()
    with pytest.raises(Killed):
        run(strategy, block=3, agent=die_on_the_second_step_of_q4)
    assert run.path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    run.agent.write = agent_writes
    done: list[int] = []
    solve(QUESTIONS, run.roles, prompts, ReasonConfig(strategy, block=3), extract, run.path, done.append)
    assert run.path.read_bytes() == whole
    assert done[0] == 3 and done[-1] == len(QUESTIONS) and done == sorted(done)


def test_part_of_a_block_or_of_a_line_is_redone(run, prompts, tmp_path):
    run("implicit", block=3)
    whole = run.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    config = ReasonConfig("implicit", block=3)
    for left in (b"".join(lines[:5]), b"".join(lines[:3]) + lines[3][:40], whole[:-1], b""):
        run.path.write_bytes(left)
        asked = len(run.agent.requests("generate"))
        done: list[int] = []
        solve(QUESTIONS, run.roles, prompts, config, extract, run.path, done.append)
        assert run.path.read_bytes() == whole
        assert done[0] == left.count(b"\n") // 3 * 3
        assert len(run.agent.requests("generate")) > asked
    run.agent.calls.clear()
    assert len(solve(QUESTIONS, run.roles, prompts, config, extract, run.path)) == 7
    assert not run.agent.calls  # a finished run asks nothing


def test_traces_are_one_json_line_per_question(run):
    traces = run("implicit")
    rows = [json.loads(line) for line in run.path.read_text().splitlines()]
    assert [row["id"] for row in rows] == [question.id for question in QUESTIONS]
    assert rows[0]["steps"][0]["candidates"] == list(traces[0].steps[0].candidates)
    assert rows[0]["tokens"]["agent"]["generated"] == traces[0].tokens["agent"].generated


def test_traces_made_with_other_settings_are_refused_by_the_key_that_differs(run, prompts):
    run("random")
    before = run.path.read_bytes()

    def again(questions=QUESTIONS, roles=run.roles, **config):
        return solve(questions, roles, prompts, ReasonConfig("random", **config), extract, run.path)

    with pytest.raises(ValueError, match=r"made with other settings: temperature 0.7 -> 0.5"):
        again(temperature=0.5)
    with pytest.raises(ValueError, match=r"other settings: questions '7 \(.*-> '6 \("):
        again(questions=QUESTIONS[:6])
    with pytest.raises(ValueError, match=r"other settings: agent '' -> 'another'"):
        again(roles=replace(run.roles, agent=replace(run.roles.agent, name="another")))
    assert run.path.read_bytes() == before
    run.path.write_bytes(before.replace(b'"finish"', b'"fin"', 1))
    with pytest.raises(ValueError, match="jsonl:1: not a trace"):
        again()
    run.path.with_name(run.path.name + ".config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json: is missing"):
        again()


def test_bad_requests_are_refused_before_any_work(run, prompts):
    with pytest.raises(ValueError, match="no strategy 'wizard', only greedy, random"):
        run("wizard")
    with pytest.raises(ValueError, match="'q0' is given twice"):
        run("greedy", [QUESTIONS[0], QUESTIONS[0]])
    run("greedy", QUESTIONS[:1])
    alone = replace(run.roles, rationalyst=None)
    with pytest.raises(ValueError, match="'implicit' needs a rationalyst; without one: greedy, random"):
        solve(QUESTIONS, alone, prompts, ReasonConfig("implicit"), extract, run.path)
    bad = {"candidates": 0, "temperature": -1.0, "top_p": 0.0, "decay": 1.1, "step_stop": ""}
    for key, value in bad.items():
        with pytest.raises(ValueError, match=key):
            ReasonConfig(**{key: value})
    with pytest.raises(ValueError, match="unknown reduction 'median'"):
        ReasonConfig(reduction="median")  # pyright: ignore[reportArgumentType]


def test_a_score_that_is_no_number_is_reported_not_ranked(run, prompts):
    run("likelihood", QUESTIONS[:1])
    run.scorer.score = lambda requests: [np.array([np.nan]) for _ in requests]
    path = run.path.with_name("nan.jsonl")
    with pytest.raises(ValueError, match="question q0: the scorer gives nan to step"):
        solve(QUESTIONS[:1], run.roles, prompts, ReasonConfig("likelihood"), extract, path)


def test_the_real_parts_take_a_real_question_together(shared, tmp_path):
    """A random Llama on the real tokenizer answers nothing, but each of its choices can be checked."""
    tokenizer = load_tokenizer(shared / "llama3_tokenizer")
    shape = LlamaConfig(128256, 8, 8, 1, 2, 1, 4, max_position_embeddings=1024, eos_token_id=128001)
    model = Llama(shape, rngs=nnx.Rngs(0))
    role = Role(Engine(model, tokenizer, batch_size=1, row_length=512), tokenizer)
    roles, prompts = Roles(role, role, role), load_prompts("llama3")
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
        alone = [scores[0] for scores in score(model, [[pair] for pair in pairs], row_length=512)]
        means = [np.average(v, weights=0.9 ** np.arange(len(v))) for v in alone]
        assert step.scores == pytest.approx(means, abs=1e-4)
        assert step.choice == int(np.argmax(means))
        preceding += step.text + "\n"
