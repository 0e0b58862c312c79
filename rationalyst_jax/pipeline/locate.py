"""The stage `locate`: which step of a given solution is wrong? Scores of steps, and what they are worth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rationalyst_jax.evaluate.step_errors import ScoredSolution, StepErrors, step_errors
from rationalyst_jax.files.parts import ALONE, DividedFile, HostShard, Waiting
from rationalyst_jax.files.rows import Row
from rationalyst_jax.files.whole import check_file
from rationalyst_jax.pipeline.models import Models, Place
from rationalyst_jax.prompts.prompt import PromptSet
from rationalyst_jax.reason.config import LocateConfig
from rationalyst_jax.reason.locate import LocatedStep, WrittenRationale, digests, rationalize, score_steps
from rationalyst_jax.reason.traces import UNRATED
from rationalyst_jax.reason.trajectory import Roles
from rationalyst_jax.tasks.process_bench import GivenSolution, read_solutions


@dataclass(frozen=True)
class LocateSummary:
    """What the scores are worth; verdicts of the judge, and unrated: how many of them are no rating."""

    quality: StepErrors
    verdicts: int
    unrated: int


def locate(
    solutions: Path,
    scorer: Place,
    rationalyst: Place | None,
    models: Models,
    prompts: PromptSet,
    config: LocateConfig,
    out: Path,
    *,
    limit: int | None = None,
    shard: HostShard = ALONE,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
    note: Callable[[str], None] = print,
) -> LocateSummary:
    """Scores the steps of the first `limit` solutions of a file in ProcessBench's format (None: all).

    The JSONL `out` gets a row for each solution, and `<out>.rationales.jsonl` what RATIONALYST wrote for it,
    where there is one. A killed run continues there. `progress` is told how many passes over a solution are
    done (one to write rationales, one to score), of how many, and the tokens computed. shard: the part of the
    solutions that is this process's (`files/parts.py`). A process waits for all rationales, because a step is
    also scored under a stranger's, and tells `note` so; where others are still scoring it raises
    OthersAtWork.

    Raises ValueError for a malformed file, a limit below 1, a scorer without log-probabilities, rows made
    with other settings, and while another process writes them; all that before a model's weights are read.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"locate: limit must be at least 1, got {limit}")
    check_file(out)
    places = {"scorer": scorer} | ({} if rationalyst is None else {"rationalyst": rationalyst})
    known = {role: models.known(place) for role, place in places.items()}
    if known["scorer"].tokenizer is None:
        raise ValueError(
            "locate: steps are scored by log-probabilities: the scorer must be a checkpoint, or an endpoint "
            "with a tokenizer"
        )
    given = read_solutions(solutions)[:limit]
    guided = () if rationalyst is None else ("follow_guided",)
    models.check(scorer, prompts, ("follow", *guided, "judge"), config.suppress)
    if rationalyst is not None:
        models.check(rationalyst, prompts, ("rationale",))

    settings = asdict(config) | {"prompts": prompts.version} | {role: k.name for role, k in known.items()}
    texts = digests(given)

    def check(path: Path, rows: Sequence[tuple[str, Row]]) -> None:
        if rows and not any(str(row.get("id")) in texts for _, row in rows):
            raise ValueError(f"{path}: holds other solutions alone; remove it or write elsewhere")

    def divided(file: Path, settings: Mapping[str, Any], name_of: Callable[[Row], str | None]) -> DividedFile:
        record = file.with_name(f"{file.name}.config.json")
        return DividedFile(file, record, settings, list(texts), config.block, name_of, check=check)

    def opened() -> Roles:
        found = dict(zip(places, models.roles(*places.values()), strict=True))
        return Roles(found["scorer"], found.get("rationalyst"), found["scorer"])

    def tell(roles: Roles, pass_: int, count: int) -> Callable[[set[str]], None]:
        before, total = pass_ * count, len(places) * count
        return lambda done: progress(before + len(done), total, sum(model.tokens for model in roles.models))

    def rationalized() -> list[tuple[WrittenRationale, ...]] | None:
        if rationalyst is None:
            return None
        asked = {name: settings[name] for name in ("rationalyst", "prompts", "max_rationale_tokens", "block")}

        def name_of(row: Row) -> str | None:
            name = str(row.get("id"))
            return name if name in texts and row.get("asked") == texts[name] else None

        def written(solutions: Sequence[GivenSolution], file: Path) -> list[tuple[WrittenRationale, ...]]:
            roles = opened()
            return rationalize(solutions, roles, prompts, config, file, tell(roles, 0, len(solutions)))

        rationales = divided(out.with_name(f"{out.name}.rationales.jsonl"), asked, name_of)
        if shard != ALONE:
            with rationales.part(shard) as (part, numbers):
                written([given[number] for number in numbers], part)
        with rationales.whole(shard, Waiting(note)) as file:
            return written(given, file)

    def scored(file: Path, numbers: Sequence[int]) -> list[tuple[LocatedStep, ...]]:
        rationales = rationalized()
        roles = opened()
        told = tell(roles, len(places) - 1, len(numbers))
        return score_steps(given, rationales, roles, prompts, config, file, told, only=numbers)

    # Whether a row fits the rationales of now is for `score_steps` to say.
    steps = divided(out, settings, lambda row: name if (name := str(row.get("id"))) in texts else None)
    if shard != ALONE:
        with steps.part(shard) as (part, numbers):
            scored(part, numbers)
    with steps.whole(shard) as file:
        located = scored(file, range(len(given)))
    judged = [step.judge for steps in located for step in steps]
    of_each = [_scored(*pair) for pair in zip(given, located, strict=True)]
    return LocateSummary(step_errors(of_each, config.seed), len(judged), judged.count(UNRATED))


def _scored(given: GivenSolution, steps: tuple[LocatedStep, ...]) -> ScoredSolution:
    names = steps[0].scores
    scores = {name: tuple(step.scores[name] for step in steps) for name in names}
    return ScoredSolution(given.problem_key, given.generator, given.first_error, scores)
