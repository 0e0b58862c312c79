"""`rationalyst filter`: which rationales make the text after them more likely?"""

from pathlib import Path

from rich.console import Console

from rationalyst_jax.cli.shard import shard_from
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.mine.config import FilterConfig
from rationalyst_jax.report.progress import track
from rationalyst_jax.report.tables import counts_table


def run(
    triples: Path,
    model: str,
    prompts: str,
    out: Path,
    filter: FilterConfig,
    mesh: MeshShape | None = None,
    shard: str = "auto",
) -> None:
    """Keep the rationales that make the text after them more likely.

    Args:
        triples: Parquet file of triples that `rationalyst mine` wrote; or a JSONL file of rationales from
            elsewhere, with preceding (preceeding, as the authors' files spell it), rationale and following.
        model: Checkpoint folder of the scoring model, or "world" for the shipped one.
        prompts: Prompt set: the name of a shipped one (llama3, world), or a YAML file.
        out: Parquet file to write. Each row has both log-likelihoods, the gain, and why the rationale was
            kept or not. Until it is written, scores are in <out>.scores.jsonl, where a killed run continues.
        filter: How rationales are judged.
        mesh: How all devices divide the work; by default one device is used.
        shard: Which part of the work is this process's, where hosts divide it: "I/N" for the I-th, from 0, of
            N shards. "auto" finds it where Slurm or GKE starts several processes, "tpu" asks the metadata
            server of a TPU VM, and "none" is one process alone.
    """
    part = shard_from(shard)
    from rationalyst_jax.lm.engine.config import EngineConfig
    from rationalyst_jax.pipeline.filter import filter_rationales
    from rationalyst_jax.pipeline.models import Models
    from rationalyst_jax.prompts.prompt import load_prompts

    console = Console()

    def note(text: str) -> None:
        console.print(text, style="yellow", markup=False)

    prompt_set = load_prompts(prompts)
    with Models(EngineConfig()) as models, track(console, "rationales scored") as progress:
        summary, work = filter_rationales(
            triples,
            model,
            models,
            prompt_set,
            filter,
            out,
            mesh=mesh,
            shard=part,
            progress=progress,
            note=note,
        )
    rows: dict[str, object] = {"rationales": summary.rationales, "kept": summary.kept}
    rows |= {f"reason: {reason}": n for reason, n in summary.reasons.items()}
    for source, (tau, kept, total) in summary.taus.items():
        which = "own tau" if source in filter.tau_by_source else "plain tau"
        rows[f"source {source}, {which} {tau:g}"] = f"{kept} of {total} kept"
    if work.places:
        rows |= {"tokens, each sequence apart": work.tokens, "tokens, as trees": work.nodes}
        rows |= {"places filled": work.filled}
    rows |= {f"gain (nats), {q:.0%} quantile": gain for q, gain in summary.gains.items()}
    console.print(counts_table("filtered", rows))
