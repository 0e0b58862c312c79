"""The stage `filter`: which rationales make the text after them more likely?"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import jax

from rationalyst_jax.files.settings import claimed, file_digest
from rationalyst_jax.files.whole import check_file
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.lm.devices.sharding import mesh_of
from rationalyst_jax.lm.trees.likelihood import Work
from rationalyst_jax.mine.config import FilterConfig
from rationalyst_jax.mine.likelihood_filter import ScoredTriple, decide, score_triples
from rationalyst_jax.mine.store import (
    Provenance,
    read_filtered,
    read_provenance,
    read_triples,
    write_filtered,
)
from rationalyst_jax.mine.summary import FilterSummary, summarize_filtered
from rationalyst_jax.mine.triples import Triple
from rationalyst_jax.pipeline.models import Models, Place
from rationalyst_jax.prompts.prompt import PromptSet, check_prompts


def filter_rationales(
    triples: Path,
    scorer: Place,
    models: Models,
    prompts: PromptSet,
    config: FilterConfig,
    out: Path,
    *,
    mesh: MeshShape | None = None,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
) -> tuple[FilterSummary, Work]:
    """Scores every triple of a Parquet file, decides which are kept, and writes all to the Parquet file
    `out`.

    Until that is written, scores go to `<out>.scores.jsonl`, where a killed run continues. The second value
    is the work of this call. mesh: divides all devices; by default one is used. Raises ValueError for a
    malformed file, thresholds of sources that are not there, work begun with other settings, and while
    another process is at this work.
    """
    check_file(out)
    found = read_triples(triples)
    origin = read_provenance(triples)
    _check_sources(found, config, triples)
    checkpoint = models.checkpoint(scorer)
    check_prompts(checkpoint.tokenizer, prompts, ["follow", "follow_guided"])
    scores = out.with_name(f"{out.name}.scores.jsonl")
    record = out.with_name(f"{out.name}.scores.config.json")
    settings = {
        "triples": file_digest(triples),
        "model": checkpoint.fingerprint,
        "prompts": prompts.version,
        "filter": asdict(config),
    }
    with claimed(record, settings, scores):
        devices = None if mesh is None else mesh_of(mesh, jax.devices())
        model = models.scorer(scorer, devices)
        scored, work = score_triples(
            found, model, checkpoint.tokenizer, prompts, config, scores, progress, devices
        )
        by = {"filter_model": str(scorer), "filter_prompts": prompts.version}
        provenance = Provenance(origin.model, origin.prompt_version, {**origin.config, **by})
        summary = _write(scored, config, out, provenance)
        scores.unlink()
        record.unlink()
    return summary, work


def decide_again(filtered: Path, config: FilterConfig, out: Path) -> FilterSummary:
    """Decides anew, by other rules, on triples that were scored before. Raises as `filter_rationales`."""
    found = read_filtered(filtered)
    _check_sources(found, config, filtered)
    return _write(found, config, out, read_provenance(filtered))


def _write(
    scored: Sequence[ScoredTriple], config: FilterConfig, out: Path, provenance: Provenance
) -> FilterSummary:
    decided = decide(scored, config)
    made_by = {**provenance.config, "filter": asdict(config)}
    write_filtered(out, decided, Provenance(provenance.model, provenance.prompt_version, made_by))
    return summarize_filtered(decided)


def _check_sources(triples: Sequence[Triple], config: FilterConfig, file: Path) -> None:
    """Raises ValueError where all thresholds are of sources that no triple has: none would apply."""
    sources = dict.fromkeys(triple.source for triple in triples)
    if triples and config.tau_by_source and not config.tau_by_source.keys() & sources.keys():
        raise ValueError(
            f"filter: tau_by_source names {', '.join(config.tau_by_source)}, "
            f"but the sources in {file} are {', '.join(sources)}"
        )
