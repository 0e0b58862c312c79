"""`rationalyst locate`: which step of a given solution is wrong?"""

from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt
from rich.console import Console

from rationalyst_jax.cli.shard import shard_from
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.reason.config import LocateConfig
from rationalyst_jax.report.progress import track
from rationalyst_jax.report.tables import (
    comparisons_table,
    counts_table,
    error_f1_table,
    generators_table,
    step_errors_table,
)
from rationalyst_jax.roles.config import EndpointConfig


def run(
    solutions: Path,
    scorer: str,
    prompts: str,
    out: Path,
    locate: LocateConfig,
    engine: EngineConfig,
    endpoint: EndpointConfig,
    task: Literal["processbench"] = "processbench",
    rationalyst: str | None = None,
    limit: PositiveInt | None = None,  # pyright: ignore[reportInvalidTypeForm]
    shard: str = "auto",
) -> None:
    """Score each step of given solutions with and without RATIONALYST's rationale, and measure how well the
    scores find the first wrong step.

    Args:
        solutions: File of solutions whose first wrong step is known, in the task's format.
        scorer: Model that scores steps, and judges them: a checkpoint folder, "world" for the shipped model,
            or the address of an OpenAI-compatible endpoint (http://host:port/v1).
        prompts: Prompt set: the name of a shipped one (llama3, world), or a YAML file.
        out: JSONL file to write, with one row per solution. A killed run continues there.
        locate: How steps are scored.
        engine: Models opened from checkpoint folders.
        endpoint: Models behind an address.
        task: Format of the solutions (processbench).
        rationalyst: Model that writes rationales: a folder or an address, as for the scorer. Without one
            steps are scored by likelihood and by the judge alone.
        limit: Number of solutions to use, from the first on; by default all.
        shard: Which part of the work is this process's, where hosts divide it: "I/N" for the I-th, from 0, of
            N shards. "auto" finds it where Slurm or GKE starts several processes, "tpu" asks the metadata
            server of a TPU VM, and "none" is one process alone.
    """
    part = shard_from(shard)
    from rationalyst_jax.pipeline.locate import locate as score
    from rationalyst_jax.pipeline.models import Models
    from rationalyst_jax.prompts.prompt import load_prompts

    console = Console()

    def note(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    prompt_set = load_prompts(prompts)
    with Models(engine, endpoint) as models, track(console, "passes over solutions") as progress:
        summary = score(
            solutions,
            scorer,
            rationalyst,
            models,
            prompt_set,
            locate,
            out,
            limit=limit,
            shard=part,
            progress=progress,
            note=note,
        )
    quality = summary.quality
    counts = {
        "problems": quality.problems,
        "solutions": quality.solutions,
        "of these with an error": quality.erroneous,
        "steps with a label": quality.steps,
        "of these errors": quality.errors,
        "verdicts that are no rating": f"{summary.unrated} of {summary.verdicts}",
    }
    console.print(counts_table(f"located: {task}", counts))
    console.print(step_errors_table(quality))
    if quality.compared:
        console.print(comparisons_table(quality))
    if any(score.f1 is not None for score in quality.scores.values()):
        console.print(error_f1_table(quality))
    if quality.by_generator:
        console.print(generators_table(quality))
