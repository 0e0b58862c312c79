"""The stages of mining, as they are done shard by shard. `STAGES` is their order.

Each calls the function that the command of its name calls. Worker processes do them (`sharded.py`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.files.settings import digest
from rationalyst_jax.files.whole import whole
from rationalyst_jax.lm.model.flops import forward_flops
from rationalyst_jax.mine.config import FilterConfig
from rationalyst_jax.mine.documents import read_shard as documents_of
from rationalyst_jax.mine.store import (
    Provenance,
    merge_filtered,
    read_provenance,
    read_sources,
    write_triples,
)
from rationalyst_jax.pipeline.filter import filter_rationales
from rationalyst_jax.pipeline.mine import mine
from rationalyst_jax.pipeline.mine_config import MineRunConfig
from rationalyst_jax.pipeline.models import Models
from rationalyst_jax.pipeline.sharded import SHARDS, Progress, ShardTask, Stage, Tally
from rationalyst_jax.prompts.prompt import PromptSet, load_prompts

BAD_ROWS = "bad_rows.jsonl"
OF_SOURCE = "source: "  # before the name of a source whose documents are counted

_IDS = pa.schema([pa.field("id", pa.string()), pa.field("source", pa.string())])


@dataclass(frozen=True)
class Tools:
    """What a worker keeps open from shard to shard."""

    config: MineRunConfig
    models: Models
    prompts: PromptSet

    @property
    def scorer(self) -> str:
        return self.config.scorer or self.config.model


@contextmanager
def open_tools(config: MineRunConfig) -> Iterator[Tools]:
    """Opens no model yet: each is opened when a shard first needs it."""
    with Models(config.engine, config.endpoint) as models:
        yield Tools(config, models, load_prompts(config.prompts))


def read_shard(tools: Tools, task: ShardTask, progress: Progress) -> Tally:
    """Reads a shard; writes its documents, their ids and sources, and what is wrong with the rows that are
    left out. Raises ValueError where these are too many."""
    most = tools.config.bad_rows
    bad: list[str] = []
    ids: list[str] = []
    sources: list[str] = []

    def reject(error: ValueError) -> None:
        if most == 0:
            raise error
        bad.append(str(error))

    def rows() -> Iterator[dict[str, str]]:
        for document in documents_of(task.input(SHARDS), Path(tools.config.documents), reject):
            ids.append(document.id)
            sources.append(document.source)
            yield vars(document)

    write_rows(task.output("documents"), rows())
    taken = len(ids) + len(bad)
    write_rows(task.out / BAD_ROWS, ({"error": error} for error in bad))
    if len(bad) > most * taken:
        raise ValueError(f"{bad[-1]}; {len(bad)} of {taken} rows are malformed, bad_rows is {most}")
    with whole(task.output("ids")) as unfinished:
        pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "source": sources}, _IDS), unfinished)
    counts = {f"{OF_SOURCE}{source}": n for source, n in Counter(sources).items()}
    return Tally(taken, len(ids), {**counts, "bad row": len(bad)} if bad else counts)


def check_documents(tools: Tools, task: ShardTask, progress: Progress) -> Tally:
    """Looks at all shards before the costly stages: raises ValueError for an id that two of them use, and
    where thresholds are for no source that is there."""
    tables = [pq.read_table(path, schema=_IDS) for path in task.inputs["ids"]]
    ids = pa.chunked_array([chunk for table in tables for chunk in table["id"].chunks], pa.string())
    if len(ids.unique()) < len(ids):
        raise ValueError(_same_ids(task.inputs["ids"], tables))
    sources = {source for table in tables for source in table["source"].unique().to_pylist()}
    taus = tools.config.filter.tau_by_source
    if taus and sources and not taus.keys() & sources:
        raise ValueError(
            f"filter: tau_by_source names {', '.join(taus)}, but the sources are {', '.join(sorted(sources))}"
        )
    return Tally(len(ids), len(ids))


def _same_ids(paths: Sequence[Path], tables: Sequence[pa.Table]) -> str:
    """Which shards share an id."""
    shard_of: dict[str, str] = {}
    for path, table in zip(paths, tables, strict=True):
        for id in table["id"].to_pylist():
            if id in shard_of:
                return f"shards {shard_of[id]} and {path.parent.name} both have a document {id!r}"
            shard_of[id] = path.parent.name
    raise AssertionError("no id is there twice")


def annotate_shard(tools: Tools, task: ShardTask, progress: Progress) -> Tally:
    """Has the model annotate a shard's documents, and cuts them into triples: the stage `mine`."""
    config = tools.config
    documents = task.input("documents")
    if not documents.stat().st_size:
        write_triples(task.output("triples"), [], Provenance(config.model, tools.prompts.version, {}))
        return Tally(0, 0)
    seed = int(digest([str(config.annotate.seed).encode(), str(task.shard).encode()])[:8], 16)
    summary, usage = mine(
        documents,
        config.model,
        tools.models,
        tools.prompts,
        replace(config.annotate, seed=seed),
        task.out,
        min_similarity=config.min_similarity,
        progress=progress,
    )
    counts = {"annotated": summary.annotated, "faithful": summary.faithful}
    counts |= {f"document: {name}": n for name, n in summary.document_outcomes.items()}
    counts |= {f"rationale: {name}": n for name, n in summary.rationale_outcomes.items()}
    return Tally(summary.documents, summary.triples, counts, usage.flops)


def filter_shard(tools: Tools, task: ShardTask, progress: Progress) -> Tally:
    """Scores a shard's triples and decides which are kept: the stage `filter`."""
    triples = task.input("triples")
    config = _with_taus_of(tools.config.filter, read_sources(triples))
    summary, work = filter_rationales(
        triples,
        tools.scorer,
        tools.models,
        tools.prompts,
        config,
        task.output("rationales"),
        progress=progress,
    )
    flops = forward_flops(
        tools.models.checkpoint(tools.scorer).config, work.nodes, work.attended, work.targets
    )
    return Tally(summary.rationales, summary.kept, summary.reasons, flops)


def _with_taus_of(config: FilterConfig, sources: Sequence[str]) -> FilterConfig:
    """A shard may lack sources that have a threshold of their own."""
    taus = {source: tau for source, tau in config.tau_by_source.items() if source in sources}
    return replace(config, tau_by_source=taus)


def merge_shards(tools: Tools, task: ShardTask, progress: Progress) -> Tally:
    """Puts the rationales of all shards, kept or not, into one Parquet file."""
    config = tools.config
    paths = task.inputs["rationales"]
    numbers = [pq.read_metadata(path).num_rows for path in paths]
    first = read_provenance(next((path for path, n in zip(paths, numbers, strict=True) if n), paths[0]))
    made = dict(first.config) | {"filter": asdict(config.filter)}
    if "annotate" in made:  # not with the seed of one shard
        made["annotate"] = {**made["annotate"], "seed": config.annotate.seed}  # pyright: ignore
    merge_filtered(paths, task.output("all rationales"), Provenance(first.model, first.prompt_version, made))
    return Tally(sum(numbers), sum(numbers))


STAGES = (
    Stage("documents", read_shard, (SHARDS,), {"documents": "documents.jsonl", "ids": "ids.parquet"}),
    Stage("check", check_documents, ("ids",), {}, over_all=True),
    Stage("annotate", annotate_shard, ("documents",), {"triples": "triples.parquet"}),
    Stage("filter", filter_shard, ("triples",), {"rationales": "rationales.parquet"}),
    Stage("merge", merge_shards, ("rationales",), {"all rationales": "rationales.parquet"}, over_all=True),
)
