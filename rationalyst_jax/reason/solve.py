"""The driver: thousands of questions at once, their requests answered in large batches."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rationalyst_jax.files.settings import digest
from rationalyst_jax.lm.prompt import PromptSet
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.roles import Call, Roles
from rationalyst_jax.reason.strategies import NEED_RATIONALYST, STRATEGIES, Outcome, Strategy
from rationalyst_jax.reason.traces import Sample, Trace, append_traces, read_traces, resume_traces
from rationalyst_jax.reason.trajectory import Extract, Question, Setting, Trajectory


def solve(
    questions: Sequence[Question],
    roles: Roles,
    prompts: PromptSet,
    config: ReasonConfig,
    extract: Extract,
    path: Path,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Trace]:
    """Solves all questions with one strategy and returns their traces, which are also in the JSONL at `path`.

    Questions run in blocks of `config.block`, written as each block ends; called again with the same
    arguments it keeps the finished blocks and ends with the same bytes as a run never interrupted.
    `progress` is told the number of questions done, those of an earlier run included.
    Raises ValueError for an unknown strategy, a strategy whose role is missing, an id given twice, or a file
    at `path` made with other settings.
    """
    check_strategy(config.strategy, has_rationalyst=roles.rationalyst is not None)
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise ValueError(f"reason: question id {question.id!r} is given twice")
        seen.add(question.id)

    settings = _settings(questions, roles, prompts, config)
    done = resume_traces(path, settings, config.block, len(questions))
    progress(done)
    setting = Setting(roles, prompts, config, extract)
    for start in range(done, len(questions), config.block):
        block = [Trajectory(q, setting) for q in questions[start : start + config.block]]
        outcomes = drive(STRATEGIES[config.strategy], block, lambda n, start=start: progress(start + n))
        append_traces(path, [_trace(config.strategy, *outcome) for outcome in outcomes])
    return read_traces(path) if questions else []


def check_strategy(name: str, *, has_rationalyst: bool) -> None:
    """Raises ValueError for a strategy that isn't there, or that needs a RATIONALYST where there is none."""
    if name not in STRATEGIES:
        raise ValueError(f"reason: no strategy {name!r}, only {', '.join(STRATEGIES)}")
    if name in NEED_RATIONALYST and not has_rationalyst:
        possible = ", ".join(other for other in STRATEGIES if other not in NEED_RATIONALYST)
        raise ValueError(f"reason: strategy {name!r} needs a rationalyst; without one: {possible}")


def drive(
    strategy: Strategy, trajectories: Sequence[Trajectory], progress: Callable[[int], None]
) -> list[Outcome]:
    """Runs one coroutine per trajectory to its end.

    Every coroutine waits for one call. Again and again the engine and method most requests wait for gets all
    of them as one batch; those ahead of the crowd wait for it, so batches stay large without a barrier.
    """
    coroutines: list[Coroutine[Any, Any, Outcome]] = []
    outcomes: dict[int, Outcome] = {}
    waiting: dict[int, Call] = {}

    def send(place: int, result: Any) -> None:
        try:
            waiting[place] = coroutines[place].send(result)
        except StopIteration as stop:
            outcomes[place] = stop.value

    for place, trajectory in enumerate(trajectories):
        coroutines.append(strategy(trajectory))
        send(place, None)
    while waiting:
        groups: dict[tuple[int, str], list[int]] = {}
        for place in sorted(waiting):
            call = waiting[place]
            groups.setdefault((id(call.engine), call.method), []).append(place)
        places = max(groups.values(), key=lambda group: sum(len(waiting[p].requests) for p in group))
        calls = [waiting.pop(place) for place in places]
        answer = getattr(calls[0].engine, calls[0].method)
        results = iter(answer([request for call in calls for request in call.requests]))
        for place, call in zip(places, calls, strict=True):
            send(place, [next(results) for _ in call.requests])
        progress(len(outcomes))
    return [outcomes[place] for place in range(len(trajectories))]


def _trace(strategy: str, winner: Trajectory, samples: Sequence[Trajectory]) -> Trace:
    assert winner.finish is not None
    return Trace(
        winner.question.id,
        strategy,
        winner.answer,
        winner.finish,
        tuple(winner.steps),
        tuple(Sample(tuple(step.text for step in s.steps), s.answer, str(s.finish)) for s in samples),
        winner.usage,
    )


def _settings(
    questions: Sequence[Question], roles: Roles, prompts: PromptSet, config: ReasonConfig
) -> dict[str, Any]:
    """All that must be equal for traces to be continued."""
    asked = digest(part.encode() for question in questions for part in (question.id, question.text))
    return asdict(config) | {
        "prompts": prompts.version,
        "agent": roles.agent.name,
        "rationalyst": roles.rationalyst.name if roles.rationalyst else None,
        "scorer": roles.scorer.name,
        "questions": f"{len(questions)} ({asked})",
    }
