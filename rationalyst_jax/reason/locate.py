"""Given solutions, step by step: what RATIONALYST says before each step, and how likely that makes the step.

First `rationalize` writes a rationale before every step and after the last one. Then `score_steps` scores
every step without a rationale, with its own, and with that of a stranger: another problem's solution at the
same place. Prompts are those of reasoning, for a given solution is a trajectory whose steps are known.
"""

from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rationalyst_jax.files.rows import Row
from rationalyst_jax.files.settings import digest
from rationalyst_jax.lm.engine.requests import Generation
from rationalyst_jax.prompts.prompt import PromptSet
from rationalyst_jax.reason.blocks import Tell, rows_in_blocks
from rationalyst_jax.reason.config import LocateConfig
from rationalyst_jax.reason.traces import Step
from rationalyst_jax.reason.trajectory import Roles, Setting, Trajectory, mean_logprob
from rationalyst_jax.roles.drive import together
from rationalyst_jax.roles.role import NotAnswered
from rationalyst_jax.tasks.process_bench import GivenSolution
from rationalyst_jax.tasks.question import Question


@dataclass(frozen=True)
class WrittenRationale:
    """What RATIONALYST writes at one place of a solution; confidence: its mean log-probability (nats)."""

    text: str
    confidence: float


@dataclass(frozen=True)
class LocatedStep:
    """One step of a given solution, and what speaks for it: the higher, the likelier it is right.

    likelihood: reduced log-probability (nats) under the scorer. judge: the scorer's rating of the solution up
    to this step from 0 to 3, and `verdict` its words (traces.py::UNRATED where they are no rating).
    With a RATIONALYST, else None: `rationale`, written before the step; implicit: as likelihood, under the
    rationale (an empty one is left out, as in reasoning); confidence: of the rationale that follows the step;
    stranger: the rationale of another problem's solution, and shuffled: as implicit, under that.
    """

    text: str
    likelihood: float
    judge: float
    verdict: str
    rationale: str | None = None
    implicit: float | None = None
    confidence: float | None = None
    stranger: str | None = None
    shuffled: float | None = None

    @property
    def scores(self) -> dict[str, float]:
        """All of them by their names; gain: what the rationale adds to the likelihood."""
        found = {"likelihood": self.likelihood, "judge": self.judge}
        if self.implicit is not None and self.confidence is not None and self.shuffled is not None:
            found |= {"implicit": self.implicit, "gain": self.implicit - self.likelihood}
            found |= {"confidence": self.confidence}
            found |= {"shuffled": self.shuffled, "shuffled gain": self.shuffled - self.likelihood}
        return found


def rationalize(
    solutions: Sequence[GivenSolution],
    roles: Roles,
    prompts: PromptSet,
    config: LocateConfig,
    path: Path,
    tell: Tell = lambda done: None,
) -> list[tuple[WrittenRationale, ...]]:
    """RATIONALYST's rationales of each solution: one before each step, and one after the last.

    They are in the JSONL `path` too, a row for each solution, which is continued. A solution that has changed
    is worked on again. Raises as `rows_in_blocks`.
    """
    by_id = {solution.id: solution for solution in solutions}

    async def write(name: str) -> Row:
        *before, whole = _trajectories(by_id[name], roles, prompts, config)
        calls = [trajectory.to_rationalize() for trajectory in (*before, whole)]
        written = [found for [found] in await whole.ask("rationalyst", calls)]
        for number, found in enumerate(written):
            if not len(found.logprobs):
                raise NotAnswered(
                    f"no rationale before step {number}: RATIONALYST has no position left, or its endpoint "
                    "tells no log-probabilities"
                )
        rationales = [asdict(WrittenRationale(found.text, mean_logprob(found))) for found in written]
        return {"rationales": rationales, "tokens": _tokens(whole)}

    asked = digests(solutions)
    rows = rows_in_blocks(
        asked, write, roles.models, config.block, path, tell, stage="locate", what="solution"
    )
    try:
        return [tuple(WrittenRationale(**found) for found in row["rationales"]) for row in rows]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: holds other rows than rationales ({error!r})") from None


def digests(solutions: Sequence[GivenSolution]) -> dict[str, str]:
    """Of each solution's texts, by its id: what rationales depend on."""
    return {solution.id: digest(_texts(solution)) for solution in solutions}


def strangers(solutions: Sequence[GivenSolution], seed: int) -> list[list[tuple[int, int]]]:
    """For each step of each solution another problem's solution (its number) and the step whose rationale
    stands in.

    It is the same step, drawn among the solutions that have it; where none has, the last step of one of the
    longest of other problems. Raises ValueError where all solutions are of one problem.
    """
    keys = [solution.problem_key for solution in solutions]
    lengths = [len(solution.steps) for solution in solutions]
    if len(set(keys)) < 2:
        raise ValueError("locate: rationales are compared with those of other problems: give two or more")
    found = []
    for number, solution in enumerate(solutions):
        rng = np.random.default_rng([seed, int(digest([solution.id.encode()]), 16)])
        others = [other for other in range(len(solutions)) if keys[other] != keys[number]]
        longest = max(lengths[other] for other in others)
        found.append([])
        for step in range(len(solution.steps)):
            same = min(step, longest - 1)
            found[-1].append((int(rng.choice([other for other in others if lengths[other] > same])), same))
    return found


def score_steps(
    solutions: Sequence[GivenSolution],
    rationales: Sequence[Sequence[WrittenRationale]] | None,
    roles: Roles,
    prompts: PromptSet,
    config: LocateConfig,
    path: Path,
    tell: Tell = lambda done: None,
    *,
    only: Sequence[int] | None = None,
) -> list[tuple[LocatedStep, ...]]:
    """The steps of each solution with their scores; those of `rationalize` make the guided ones.

    They are in the JSONL `path` too, as in `rationalize`. only: numbers of the solutions to score, in whole
    blocks, where others are scored elsewhere; `rationales` are of all. Raises as `rows_in_blocks`, and as
    `strangers`.
    """
    shuffled: list[list[str]] | None = None
    asked = digests(solutions)
    if rationales is not None:
        shuffled = [
            [rationales[other][step].text for other, step in places]
            for places in strangers(solutions, config.seed)
        ]
        for solution, own, other in zip(solutions, rationales, shuffled, strict=True):
            said = [text.encode() for text in (*(one.text for one in own), *other)]
            asked[solution.id] = digest([*_texts(solution), *said])
    numbers = {solution.id: number for number, solution in enumerate(solutions)}
    by_id = {solution.id: solution for solution in solutions}

    async def write(name: str) -> Row:
        solution = by_id[name]
        *before, whole = _trajectories(solution, roles, prompts, config)
        steps = []
        for number, trajectory in enumerate(before):
            own = other = None
            if rationales is not None and shuffled is not None:
                own = rationales[numbers[solution.id]][number : number + 2]
                other = shuffled[numbers[solution.id]][number]
            last = number == len(before) - 1
            steps.append(_score(trajectory, solution.steps[number], last, own, other))
        located = await together(steps)
        return {"steps": [asdict(step) for step in located], "tokens": _tokens(whole)}

    if only is not None:
        solutions = [solutions[number] for number in only]
        asked = {solution.id: asked[solution.id] for solution in solutions}
    rows = rows_in_blocks(
        asked, write, roles.models, config.block, path, tell, stage="locate", what="solution"
    )
    try:
        return [tuple(LocatedStep(**step) for step in row["steps"]) for row in rows]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: holds other rows than located steps ({error!r})") from None


async def _score(
    trajectory: Trajectory,
    text: str,
    last: bool,
    own: Sequence[WrittenRationale] | None,
    stranger: str | None,
) -> LocatedStep:
    """Scores one step after the trajectory before it. own: the rationales before and after the step."""
    step = [_given(text, last)]
    asked: list[Coroutine[Any, Any, Any]] = [trajectory.judge(step), trajectory.score(step, None)]
    if own is None:
        ((judge,), (verdict,)), (likelihood,) = await together(asked)
        return LocatedStep(text, likelihood, judge, verdict)
    for rationale in (own[0].text, stranger or ""):
        asked.append(trajectory.score(step, guides(rationale)))
    ((judge,), (verdict,)), (likelihood,), (implicit,), (shuffled,) = await together(asked)
    before, after = own
    return LocatedStep(
        text, likelihood, judge, verdict, before.text, implicit, after.confidence, stranger, shuffled
    )


def guides(rationale: str) -> str | None:
    """The rationale that a step is scored under; an empty one says nothing."""
    return rationale if rationale.strip() else None


def _given(text: str, last: bool) -> Generation:
    """A step as if the agent had written it; after the last one it had no more to say."""
    nothing = np.zeros(0, np.float32)
    return Generation((), nothing, text, "end") if last else Generation((), nothing, text, "stop", "\n")


def _trajectories(
    solution: GivenSolution, roles: Roles, prompts: PromptSet, config: LocateConfig
) -> list[Trajectory]:
    """The trajectory before each step, and the whole one. What they use is counted together."""
    setting = Setting(roles, prompts, config.reasoning, lambda text, question: None)
    trajectories = [Trajectory(Question(solution.id, solution.problem), setting)]
    for text in solution.steps:
        longer = trajectories[-1].fork()
        longer.steps.append(Step(text, "stop", (text,), 0))
        trajectories.append(longer)
    return trajectories


def _texts(solution: GivenSolution) -> list[bytes]:
    return [text.encode() for text in (solution.problem, *solution.steps)]


def _tokens(trajectory: Trajectory) -> Row:
    return {role: asdict(used) for role, used in trajectory.usage.items()}
