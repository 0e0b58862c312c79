"""A run: all questions with one strategy, in a file of traces that survives being killed."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from rationalyst_jax.files.settings import digest
from rationalyst_jax.prompts.prompt import PromptSet
from rationalyst_jax.reason.blocks import in_blocks, refuse_failures
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.strategies import STRATEGIES, Outcome, check_strategy
from rationalyst_jax.reason.traces import Sample, Trace, append_trace, in_order, resume_traces
from rationalyst_jax.reason.trajectory import Extract, Roles, Setting, Trajectory
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
    never interrupted, but for the seconds: `config.block` questions are at work at once (`blocks.py`). A
    question whose text has changed since is solved again; traces of questions that are not asked now stay
    in the file. `progress` is told how many questions are done (those of an earlier run included), of how
    many, and how many tokens this one has computed. `by_subject`: prompts for questions of some subjects.

    Raises ValueError for an unknown strategy, a strategy whose role is missing, an id given twice; and, when
    all others are done, if questions failed: called again, it tries them again.
    """
    has_rationalyst = roles.rationalyst is not None
    check_strategy(config, has_rationalyst=has_rationalyst, can_score=roles.scorer.can_score)
    asked = digests(questions)
    done = resume_traces(path, asked)
    setting = Setting(roles, prompts, config, extract, by_subject or {})
    strategy = STRATEGIES[config.strategy]

    def begin(number: int) -> Coroutine[Any, Any, Outcome]:
        return strategy(Trajectory(questions[number], setting))

    def keep(number: int, outcome: Outcome, seconds: float) -> None:
        append_trace(path, _trace(config.strategy, *outcome, seconds, asked[questions[number].id]))

    def tell() -> None:
        progress(len(done), len(questions), sum(model.tokens for model in roles.models))

    failures = in_blocks(list(asked), begin, roles.models, config.block, done, keep, tell)
    refuse_failures(failures, "reason", "question", len(questions), path)
    return in_order(path, asked)


def digests(questions: Sequence[Question]) -> dict[str, str]:
    """Of each question's text, by its id. Raises ValueError for an id given twice."""
    asked: dict[str, str] = {}
    for question in questions:
        if question.id in asked:
            raise ValueError(f"reason: question id {question.id!r} is given twice")
        asked[question.id] = digest([question.asked.encode()])
    return asked


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
