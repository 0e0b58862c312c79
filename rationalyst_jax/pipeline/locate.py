"""The stage `locate`: which step of a given solution is wrong? Scores of steps, and what they are worth."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rationalyst_jax.evaluate.step_errors import ScoredSolution, StepErrors, step_errors
from rationalyst_jax.files.settings import claimed
from rationalyst_jax.files.whole import check_file
from rationalyst_jax.pipeline.models import Models, Place
from rationalyst_jax.prompts.prompt import PromptSet
from rationalyst_jax.reason.config import LocateConfig
from rationalyst_jax.reason.locate import LocatedStep, rationalize, score_steps
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
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
) -> LocateSummary:
    """Scores the steps of the first `limit` solutions of a file in ProcessBench's format (None: all).

    The JSONL `out` gets a row for each solution, and `<out>.rationales.jsonl` what RATIONALYST wrote for it,
    where there is one. A killed run continues there. `progress` is told how many passes over a solution are
    done (one to write rationales, one to score), of how many, and the tokens computed. Raises ValueError for
    a malformed file, a limit below 1, a scorer without log-probabilities, rows made with other settings, and
    while another process writes them; all that before a model's weights are read.
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

    written_to = out.with_name(f"{out.name}.rationales.jsonl")
    settings = asdict(config) | {"prompts": prompts.version} | {role: k.name for role, k in known.items()}
    with claimed(out.with_name(f"{out.name}.config.json"), settings, out):
        found = dict(zip(places, models.roles(*places.values()), strict=True))
        roles = Roles(found["scorer"], found.get("rationalyst"), found["scorer"])
        passes = len(places) * len(given)

        def tell(before: int) -> Callable[[set[str]], None]:
            return lambda done: progress(
                before + len(done), passes, sum(model.tokens for model in roles.models)
            )

        rationales = None
        if rationalyst is not None:
            asked = {
                name: settings[name] for name in ("rationalyst", "prompts", "max_rationale_tokens", "block")
            }
            with claimed(written_to.with_name(f"{written_to.name}.config.json"), asked, written_to):
                rationales = rationalize(given, roles, prompts, config, written_to, tell(0))
        located = score_steps(given, rationales, roles, prompts, config, out, tell(passes - len(given)))
    judged = [step.judge for steps in located for step in steps]
    scored = [_scored(*pair) for pair in zip(given, located, strict=True)]
    return LocateSummary(step_errors(scored, config.seed), len(judged), judged.count(UNRATED))


def _scored(given: GivenSolution, steps: tuple[LocatedStep, ...]) -> ScoredSolution:
    names = steps[0].scores
    scores = {name: tuple(step.scores[name] for step in steps) for name in names}
    return ScoredSolution(given.problem_key, given.generator, given.first_error, scores)
