"""A run: all questions with one strategy, in a file of traces that survives being killed."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rationalyst_jax.files.settings import digest
from rationalyst_jax.prompts.prompt import PromptSet
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.strategies import STRATEGIES, Outcome, check_strategy
from rationalyst_jax.reason.traces import Sample, Trace, append_trace, in_order, resume_traces
from rationalyst_jax.reason.trajectory import Extract, Roles, Setting, Trajectory
from rationalyst_jax.roles.drive import drive
from rationalyst_jax.tasks.question import Question


def solve(
    questions: Sequence[Question],
    roles: Roles,
    prompts: PromptSet,
    config: ReasonConfig,
    extract: Extract,
    path: Path,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
    by_subject: Mapping[str, PromptSet] | None = None,
) -> list[Trace]:
    """Solves all questions with one strategy and returns their traces, which are also in the JSONL at `path`:
    each as soon as its question is finished, and in the end in the questions' order.

    Called again with the same arguments it goes on where it was killed, and ends with the same lines as a run
    never interrupted, but for the seconds: `config.block` questions are at work at once, and a block that is
    not complete is worked on again from its beginning, for the last bits of a score depend on what is
    computed beside it. (Not where a model's results cannot be repeated anyway; then only what is missing is.)
    A question whose text has changed since is solved again; traces of questions that are not asked now stay
    in the file. `progress` is told how many questions are done (those of an earlier run included), of how
    many, and how many tokens this one has computed. `by_subject`: prompts for questions of some subjects.

    Raises ValueError for an unknown strategy, a strategy whose role is missing, an id given twice, a file at
    `path` that holds traces of other questions alone; and, when all others are done, if questions failed:
    called again, it tries them again.
    """
    has_rationalyst = roles.rationalyst is not None
    check_strategy(config, has_rationalyst=has_rationalyst, can_score=roles.scorer.can_score)
    asked: dict[str, str] = {}
    for question in questions:
        if question.id in asked:
            raise ValueError(f"reason: question id {question.id!r} is given twice")
        asked[question.id] = digest([question.asked.encode()])

    done = resume_traces(path, asked)
    setting = Setting(roles, prompts, config, extract, by_subject or {})
    repeatable = all(model.repeatable for model in roles.models)
    failures: dict[str, Exception] = {}

    def tell() -> None:
        progress(len(done), len(questions), sum(model.tokens for model in roles.models))

    def finished(question: Question, outcome: Outcome, seconds: float) -> None:
        if question.id not in done:
            append_trace(path, _trace(config.strategy, *outcome, seconds, asked[question.id]))
            done.add(question.id)

    tell()
    for start in range(0, len(questions), config.block):
        block = questions[start : start + config.block]
        missing = [question for question in block if question.id not in done]
        if missing:
            _solve_block(block if repeatable else missing, setting, finished, failures, tell)
    if failures:
        name, error = next(iter(failures.items()))
        raise ValueError(
            f"reason: {len(failures)} of {len(questions)} questions failed, as question {name}: {error}; "
            f"the others are in {path}, and the same run again tries these again"
        )
    return in_order(path, asked)


def _solve_block(
    questions: Sequence[Question],
    setting: Setting,
    finished: Callable[[Question, Outcome, float], None],
    failures: dict[str, Exception],
    tell: Callable[[], None],
) -> None:
    """Solves questions at once. `finished` is told each with the seconds it took; errors go to `failures`.

    `tell` is called while they are at work.
    """
    for model in setting.roles.models:
        model.forget()
    began = time.monotonic()

    def ended(number: int, outcome: Outcome) -> None:
        finished(questions[number], outcome, time.monotonic() - began)

    def failed(number: int, error: Exception) -> None:
        failures[questions[number].id] = error

    strategy = STRATEGIES[setting.config.strategy]
    coroutines = [strategy(Trajectory(question, setting)) for question in questions]
    drive(coroutines, setting.roles.models, ended, failed, tell)


def _trace(
    strategy: str, winner: Trajectory, samples: Sequence[Trajectory], seconds: float, asked: str
) -> Trace:
    assert winner.finish is not None
    return Trace(
        winner.question.id,
        strategy,
        winner.answer,
        winner.finish,
        tuple(winner.steps),
        tuple(Sample(tuple(step.text for step in s.steps), s.answer, str(s.finish)) for s in samples),
        winner.usage,
        round(seconds, 3),
        asked,
    )
