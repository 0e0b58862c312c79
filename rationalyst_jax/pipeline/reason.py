"""The stage `reason`: questions are solved with one strategy, and leave a trace each."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rationalyst_jax.files.whole import check_file
from rationalyst_jax.pipeline.models import Models, Place
from rationalyst_jax.prompts.prompt import PromptSet
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.solve import solve
from rationalyst_jax.reason.strategies import check_strategy, guided_by, prompts_of
from rationalyst_jax.reason.traces import count_unrated, mean_ledger
from rationalyst_jax.reason.trajectory import Roles
from rationalyst_jax.tasks.task import Task


@dataclass(frozen=True)
class Cast:
    """Which model plays which role. scorer: None is the agent's own. rationalyst: None is nobody."""

    agent: Place
    rationalyst: Place | None = None
    scorer: Place | None = None


@dataclass(frozen=True)
class ReasonSummary:
    """Questions solved with one strategy.

    answered: with an answer that could be read. steps: of a question, the mean. finishes: how many ended for
    which reason, the most frequent first. ledger: means of a question (`reason/traces.py::mean_ledger`).
    verdicts: of a judge, and unrated: how many of them are no rating.
    """

    questions: int
    answered: int
    steps: float
    finishes: Mapping[str, int]
    ledger: Mapping[str, float]
    verdicts: int = 0
    unrated: int = 0


def reason(
    questions: Path,
    task: Task,
    cast: Cast,
    models: Models,
    prompts: PromptSet,
    config: ReasonConfig,
    out: Path,
    *,
    limit: int | None = None,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
) -> ReasonSummary:
    """Solves the first `limit` questions of a task's file (None: all); traces go to the JSONL file `out`.

    A killed run continues there. `progress` is told how many questions are done (those of an earlier run
    included), of how many, and the tokens computed by this one. Raises ValueError for a malformed file, a
    strategy whose role is missing, traces made with other settings, and while another process writes them.
    """
    check_file(out)
    check_strategy(config, has_rationalyst=cast.rationalyst is not None)
    asked = task.read(questions)[:limit]
    places = [place for place in (cast.agent, cast.rationalyst, cast.scorer) if place is not None]
    players = {"agent": cast.agent, "rationalyst": cast.rationalyst, "scorer": cast.scorer or cast.agent}
    for role, names in prompts_of(config).items():
        if (place := players[role]) is not None:
            models.check(place, prompts, names)
    found = dict(zip(places, models.roles(*places), strict=True))
    roles = Roles(
        agent=found[cast.agent],
        rationalyst=None if cast.rationalyst is None else found[cast.rationalyst],
        scorer=found[cast.scorer or cast.agent],
    )
    traces = solve(asked, roles, prompts, config, task.extract, out, progress)
    unrated, verdicts = count_unrated(traces) if guided_by(config) == "judge" else (0, 0)
    return ReasonSummary(
        questions=len(traces),
        answered=sum(trace.answer is not None for trace in traces),
        steps=sum(len(trace.steps) for trace in traces) / len(traces),
        finishes=dict(Counter(trace.finish for trace in traces).most_common()),
        ledger=mean_ledger(traces),
        verdicts=verdicts,
        unrated=unrated,
    )
