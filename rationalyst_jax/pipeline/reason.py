"""The stage `reason`: questions are solved with one strategy, and leave a trace each."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rationalyst_jax.files.parts import ALONE, DividedFile, HostShard, Waiting
from rationalyst_jax.files.prepared import Source
from rationalyst_jax.files.rows import Row
from rationalyst_jax.files.whole import check_file
from rationalyst_jax.pipeline.models import Models, Place
from rationalyst_jax.prompts.prompt import PromptSet
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.demonstrations import shown
from rationalyst_jax.reason.solve import digests, solve
from rationalyst_jax.reason.strategies import check_strategy, guided_by, prompts_of
from rationalyst_jax.reason.traces import Trace, count_unrated, in_order, mean_ledger, resume_traces
from rationalyst_jax.reason.trajectory import Roles
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.sources import read_questions
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
    questions: Source,
    task: Task,
    cast: Cast,
    models: Models,
    prompts: PromptSet,
    config: ReasonConfig,
    out: Path,
    *,
    limit: int | None = None,
    shots_from: Source | None = None,
    shard: HostShard = ALONE,
    wait: Waiting | None = None,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
) -> ReasonSummary:
    """Solves the first `limit` questions of a task's file (None: all); traces go to the JSONL file `out`.

    A killed run continues there; so does one with another limit, or with questions that were mended since,
    which are solved again. `shots_from`: questions from which the shots are drawn that an agent is shown;
    without any it is shown our own. `shard`: the part of the questions that is this process's
    (`files/parts.py`); where others are still at work it raises OthersAtWork, or waits for them as `wait`
    says. `progress` is told how many questions are done (those of an earlier run
    included), of how many, and the tokens computed by this one. Raises ValueError for a malformed file, a
    limit below 1, a strategy whose role is missing, traces made with other settings, and while another
    process writes them; all that before a model's weights are read.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"reason: limit must be at least 1, got {limit}")
    check_file(out)
    players = {"agent": cast.agent, "rationalyst": cast.rationalyst, "scorer": cast.scorer or cast.agent}
    places = {role: place for role, place in players.items() if place is not None}
    known = {role: models.known(place) for role, place in places.items()}
    can_score = known["scorer"].tokenizer is not None
    check_strategy(config, has_rationalyst="rationalyst" in known, can_score=can_score)
    asked = read_questions(task, questions)[:limit]
    config = replace(config, step_end=config.step_end or task.step_end)
    pool = None if shots_from is None else read_questions(task, shots_from, task.references[0])
    prompts, by_subject = shown(prompts, task, config, asked, pool)
    for role, names in prompts_of(config).items():
        models.check(places[role], prompts, names, () if role == "rationalyst" else config.suppress)
    settings = asdict(config) | {"prompts": prompts.version} | {role: k.name for role, k in known.items()}
    texts = digests(asked)

    def name_of(row: Row) -> str | None:
        name = str(row.get("id"))
        return name if name in texts and row.get("asked") == texts[name] else None

    def check(path: Path, rows: Sequence[tuple[str, Row]]) -> None:
        if rows and not any(name_of(row) for _, row in rows):
            raise ValueError(f"{path}: holds traces of other questions alone; remove it or write elsewhere")

    def solved(questions: Sequence[Question], file: Path) -> list[Trace]:
        wanted = digests(questions)
        if file.exists() and resume_traces(file, wanted) == wanted.keys():  # no model need be opened
            progress(len(wanted), len(wanted), 0)
            return in_order(file, wanted)
        found = dict(zip(places, models.roles(*places.values()), strict=True))
        roles = Roles(found["agent"], found.get("rationalyst"), found["scorer"])
        return solve(questions, roles, prompts, config, task.extract, file, progress, by_subject)

    record = out.with_name(f"{out.name}.config.json")
    divided = DividedFile(out, record, settings, list(texts), config.block, name_of, check=check)
    if shard != ALONE:
        with divided.part(shard) as (part, numbers):
            solved([asked[number] for number in numbers], part)
    with divided.whole(shard, wait) as file:
        traces = solved(asked, file)
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
