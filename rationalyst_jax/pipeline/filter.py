"""The stage `filter`: which rationales make the text after them more likely?"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import jax
from jax.sharding import Mesh

from rationalyst_jax.files.parts import ALONE, DividedFile, HostShard
from rationalyst_jax.files.rows import table_format
from rationalyst_jax.files.whole import check_file
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.lm.devices.sharding import mesh_of, row_shards
from rationalyst_jax.lm.trees.likelihood import Work
from rationalyst_jax.lm.weights.tokenizer import marker_ids
from rationalyst_jax.mine.config import FilterConfig
from rationalyst_jax.mine.likelihood_filter import (
    ScoredTriple,
    decide,
    document_of,
    numbers_by_document,
    score_triples,
)
from rationalyst_jax.mine.store import (
    Provenance,
    read_filtered,
    read_provenance,
    read_triples,
    write_filtered,
)
from rationalyst_jax.mine.summary import FilterSummary, summarize_filtered
from rationalyst_jax.mine.triple_files import read_triple_files
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
    shard: HostShard = ALONE,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
    note: Callable[[str], None] = print,
) -> tuple[FilterSummary, Work]:
    """Scores every triple of a Parquet file, or of a JSONL file as `read_triple_files` reads it, decides
    which are kept, and writes all to the Parquet file `out`.

    Until that is written, scores go to `<out>.scores.jsonl`, where a killed run continues. The second value
    is the work of this call. mesh: divides all devices of this host; by default one is used. shard: the part
    of the documents that is this process's (`files/parts.py`); where others are still at work, or `out` is
    there as asked, it raises OthersAtWork. `note` is told of thresholds of sources that are not there.

    Raises ValueError for a malformed file, thresholds of such sources alone, rows that the mesh does not
    divide, work begun with other settings, and while another process is at this work.
    """
    check_file(out)
    found, origin = _read(triples)
    if unused := unused_taus(found, config, triples):
        note(f"{triples} has no source {', '.join(unused)}, which tau_by_source names")
    checkpoint = models.checkpoint(scorer)
    check_prompts(checkpoint.tokenizer, prompts, ["follow", "follow_guided"])
    marker_ids(checkpoint.tokenizer, config.suppress)
    devices = mesh_for(config, mesh)
    scores = out.with_name(f"{out.name}.scores.jsonl")
    record = out.with_name(f"{out.name}.scores.config.json")
    settings = {
        "model": checkpoint.fingerprint,
        "prompts": prompts.version,
        "filter": asdict(config),
    }

    def score(triples: Sequence[Triple], file: Path) -> tuple[list[ScoredTriple], Work]:
        model = models.scorer(scorer, devices)
        return score_triples(triples, model, checkpoint.tokenizer, prompts, config, file, progress, devices)

    by = {
        "filter_model": str(scorer),
        "filter_base": checkpoint.base,
        "filter_fingerprint": checkpoint.fingerprint,
        "filter_prompts": prompts.version,
    }
    provenance = Provenance(origin.model, origin.prompt_version, {**origin.config, **by})

    def is_made() -> bool:
        if not out.exists():
            return False
        with suppress(ValueError):  # of other triples, or not ours
            made_by = _made_by(provenance, config)
            return read_provenance(out) == made_by and read_triples(out) == found
        return False

    documents = list(numbers_by_document(found))
    divided = DividedFile(
        scores, record, settings, documents, config.block, document_of(found), output=out, is_made=is_made
    )
    work = Work()
    if shard != ALONE:
        with divided.part(shard) as (part, numbers):
            own = {divided.names[number] for number in numbers}
            _, work = score([triple for triple in found if triple.document_id in own], part)
    with divided.whole(shard) as file:
        scored, rest = score(found, file)
        summary = _write(scored, config, out, provenance)
        scores.unlink()
        record.unlink()
    return summary, work + rest


def _read(file: Path) -> tuple[list[Triple], Provenance]:
    """The triples, and what made them: of rationales from elsewhere nobody says."""
    if table_format(file) == ".jsonl":
        return read_triple_files(file), Provenance("", "", {})
    return read_triples(file), read_provenance(file)


def mesh_for(config: FilterConfig, shape: MeshShape | None) -> Mesh | None:
    """All devices of this host in that shape, None for one.

    Raises ValueError where it does not divide them, or the rows of a batch.
    """
    mesh = None if shape is None else mesh_of(shape, jax.local_devices())
    shards = row_shards(mesh)
    if config.rows_per_batch % shards:
        raise ValueError(
            f"filter: rows_per_batch must be a multiple of the mesh's {shards} row shards, "
            f"got {config.rows_per_batch}"
        )
    return mesh


def decide_again(filtered: Path, config: FilterConfig, out: Path) -> FilterSummary:
    """Decides anew, by other rules, on triples that were scored before. Raises as `filter_rationales`."""
    found = read_filtered(filtered)
    unused_taus(found, config, filtered)
    return _write(found, config, out, read_provenance(filtered))


def _write(
    scored: Sequence[ScoredTriple], config: FilterConfig, out: Path, provenance: Provenance
) -> FilterSummary:
    decided = decide(scored, config)
    write_filtered(out, decided, _made_by(provenance, config))
    return summarize_filtered(decided)


def _made_by(provenance: Provenance, config: FilterConfig) -> Provenance:
    how = {**provenance.config, "filter": asdict(config)}
    return Provenance(provenance.model, provenance.prompt_version, json.loads(json.dumps(how)))


def unused_taus(triples: Sequence[Triple], config: FilterConfig, file: Path) -> list[str]:
    """The sources that have a threshold but no triple. Raises ValueError where no other has a threshold."""
    sources = dict.fromkeys(triple.source for triple in triples)
    unused = [source for source in config.tau_by_source if source not in sources]
    if triples and unused and len(unused) == len(config.tau_by_source):
        raise ValueError(
            f"filter: tau_by_source names {', '.join(unused)}, but the sources in {file} are "
            f"{', '.join(sources)}: name these (mine --source, or a key source in lines of JSON gives rows "
            "one), or take tau for all with --filter.tau_by_source {}"
        )
    return unused
