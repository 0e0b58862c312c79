"""`rationalyst filter`: which rationales make the text after them more likely?"""

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console

from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.mine.config import FilterConfig
from rationalyst_jax.report.progress import track
from rationalyst_jax.report.tables import counts_table


def run(
    triples: Path, model: str, prompts: str, out: Path, filter: FilterConfig, mesh: MeshShape | None = None
) -> None:
    """Keep the rationales that make the text after them more likely.

    Args:
        triples: Parquet file of triples.
        model: Checkpoint folder of the scoring model ("world": the one shipped).
        prompts: A shipped prompt set (llama3, world) or a YAML file.
        out: Parquet file to write, with both log-likelihoods, gain, and why each was kept or not. Until it is
            written, scores go to <out>.scores.jsonl, where a killed run continues.
        mesh: Divides all devices; by default one is used.
    """
    import jax

    from rationalyst_jax.files.settings import claim, file_digest
    from rationalyst_jax.lm.devices.sharding import mesh_of
    from rationalyst_jax.lm.weights.open import open_checkpoint
    from rationalyst_jax.mine.likelihood_filter import decide, score_triples
    from rationalyst_jax.mine.store import Provenance, read_provenance, read_triples, write_filtered
    from rationalyst_jax.prompts.prompt import check_prompts, load_prompts
    from rationalyst_jax.world.checkpoint import checkpoint_path

    console = Console()
    prompt_set, found, origin = load_prompts(prompts), read_triples(triples), read_provenance(triples)
    checkpoint = open_checkpoint(checkpoint_path(model))
    check_prompts(checkpoint.tokenizer, prompt_set, ["follow", "follow_guided"])
    scores, settings = (out.with_name(f"{out.name}.scores.{end}") for end in ("jsonl", "config.json"))
    asked = {"triples": file_digest(triples), "model": checkpoint.fingerprint, "prompts": prompt_set.version}
    claim(settings, {**asked, "filter": asdict(filter)}, scores)
    devices = None if mesh is None else mesh_of(mesh, jax.devices())
    scorer = checkpoint.load_for_inference(devices), checkpoint.tokenizer
    with track(console, "rationales scored", len(found)) as advance:
        scored, work = score_triples(found, *scorer, prompt_set, filter, scores, advance, devices)
    decided = decide(scored, filter)
    by = {"filter": asdict(filter), "filter_model": model, "filter_prompts": prompt_set.version}
    write_filtered(out, decided, Provenance(origin.model, origin.prompt_version, {**origin.config, **by}))
    for file in (scores, settings):
        file.unlink()

    rows: dict[str, object] = {"rationales": len(decided), "kept": sum(triple.kept for triple in decided)}
    rows |= {f"reason: {reason}": n for reason, n in Counter(t.reason for t in decided).most_common()}
    if work.places:
        rows |= {"tokens, each sequence apart": work.tokens, "tokens, as trees": work.nodes}
        rows |= {"places filled": work.filled}
    if gains := [triple.gain for triple in decided if triple.gain is not None]:
        levels = (0.1, 0.25, 0.5, 0.75, 0.9)
        rows |= {f"gain (nats), {q:.0%} quantile": float(np.quantile(gains, q)) for q in levels}
    console.print(counts_table("filtered", rows))
