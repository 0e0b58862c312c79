"""The stages of mining, as they are done shard by shard. `stages` gives their order.

Each calls the function that the command of its name calls. Worker processes do them (`sharded.py`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rationalyst_jax.files.rows import Row, write_rows
from rationalyst_jax.files.settings import digest
from rationalyst_jax.files.whole import read_json, whole, write_json
from rationalyst_jax.lm.devices.programs import programs_kept
from rationalyst_jax.lm.model.flops import forward_flops
from rationalyst_jax.mine.config import FilterConfig
from rationalyst_jax.mine.decontaminate import QuestionIndex, contamination, judge
from rationalyst_jax.mine.deduplicate import sign_shard
from rationalyst_jax.mine.documents import Document
from rationalyst_jax.mine.documents import read_shard as documents_of
from rationalyst_jax.mine.prefilter import PREFILTERED
from rationalyst_jax.mine.shards import KEPT, Judge, Outcomes, Shard, add_outcomes, divide, read_verdicts
from rationalyst_jax.mine.store import (
    Provenance,
    merge_filtered,
    read_provenance,
    read_sources,
    write_triples,
)
from rationalyst_jax.pipeline import prefilter
from rationalyst_jax.pipeline.dedup import duplicates, judge_by
from rationalyst_jax.pipeline.filter import filter_rationales
from rationalyst_jax.pipeline.markers import SHARDS, Progress, ShardTask, Stage, Tally
from rationalyst_jax.pipeline.mine import TRIPLES, mine
from rationalyst_jax.pipeline.mine_config import MineRunConfig
from rationalyst_jax.pipeline.models import Models, address_of
from rationalyst_jax.prompts.prompt import PromptSet, load_prompts
from rationalyst_jax.tasks.benchmarks import task_named
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.sources import read_questions

BAD_ROWS = "bad_rows.jsonl"
MERGED = "all rationales"
OF_SOURCE = "source: "  # before the name of a source whose documents are counted

_IDS = pa.schema([pa.field("id", pa.string()), pa.field("source", pa.string())])
_DUPLICATES = pa.schema(
    [
        ("shard", pa.string()),
        ("number", pa.int64()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("original", pa.string()),
        ("original_shard", pa.string()),
        ("similarity", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Tools:
    """What a worker keeps open from shard to shard."""

    config: MineRunConfig
    models: Models
    prompts: PromptSet

    @property
    def scorer(self) -> str:
        return self.config.scorer or self.config.model

    @cached_property
    def prefilter(self) -> prefilter.Prefilter:
        """The references, encoded, and alpha."""
        config = self.config
        assert config.encoder is not None
        return prefilter.open_prefilter(config.references, Path(config.encoder), config.prefilter)

    @cached_property
    def questions(self) -> dict[str, list[Question]]:
        """What documents are not to hold, by tasks."""
        against = self.config.against
        return {name: read_questions(task_named(name), source) for name, source in against.items()}

    @cached_property
    def question_index(self) -> QuestionIndex:
        return QuestionIndex(self.questions, self.config.decontaminate)


@contextmanager
def open_tools(config: MineRunConfig) -> Iterator[Tools]:
    """Opens no model yet: each is opened when a shard first needs it."""
    with programs_kept(), Models(config.engine, config.endpoint) as models:
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


def prefilter_shard(tools: Tools, task: ShardTask, progress: Progress) -> Tally:
    """Keeps the documents that are like reasoning: the stage `prefilter`."""
    documents = list(_read(task))
    before = tools.prefilter.encoder.flops
    summary = prefilter.prefilter_documents(documents, tools.prefilter, task.out, progress=progress)
    counts: dict[str, int] = {}
    for source, of_source in summary.sources.items():
        counts[f"{source}: {KEPT}"] = of_source.kept
        counts[f"{source}: unlike the references"] = of_source.documents - of_source.kept
    kept = sum(of_source.kept for of_source in summary.sources.values())
    return Tally(len(documents), kept, counts, tools.prefilter.encoder.flops - before)


def sign(tools: Tools, task: ShardTask, progress: Progress) -> Tally:
    """Signs the documents of a shard, by which duplicates are found."""
    documents = task.input("documents")
    assert task.shard is not None
    signatures = task.output("signatures")
    sign_shard(Shard(task.shard, documents, documents), "", tools.config.dedup, signatures)
    signed = pq.read_metadata(signatures).num_rows
    return Tally(signed, signed)


def find_duplicates(tools: Tools, task: ShardTask, progress: Progress) -> Tally:
    """Compares the signatures of all shards; lists those documents that are duplicates of earlier ones."""
    files = task.inputs["signatures"]
    shards = [path.parent.name for path in files]
    gone = duplicates(shards, files, tools.config.dedup)
    found = 0
    with (
        whole(task.output("duplicates")) as unfinished,
        pq.ParquetWriter(unfinished, _DUPLICATES) as table,
    ):
        for shard in shards:
            rows = [{"shard": shard, "number": number} | row for number, row in gone(shard).items()]
            table.write_table(pa.Table.from_pylist(rows, _DUPLICATES))
            found += len(rows)
    return Tally(sum(pq.read_metadata(path).num_rows for path in files), found)


def dedup_shard(tools: Tools, task: ShardTask, progress: Progress) -> Tally:
    """Drops the duplicates of a shard: the stage `dedup`."""
    table = pq.read_table(task.input("duplicates"), filters=[("shard", "=", task.shard)])
    columns = [name for name in table.column_names if name not in ("shard", "number")]
    verdicts = table.select(columns).to_pylist()
    gone: dict[int, Row] = dict(zip(table["number"].to_pylist(), verdicts, strict=True))
    return _divide(task, judge_by(gone), "dedup")


def decontaminate_shard(tools: Tools, task: ShardTask, progress: Progress) -> Tally:
    """Drops the documents of a shard that hold a question: the stage `decontaminate`."""
    index = tools.question_index
    return _divide(
        task, lambda _, document: judge(document, index, tools.config.decontaminate), "decontaminate"
    )


def _divide(task: ShardTask, judge: Judge, stage: str) -> Tally:
    staying, verdicts, outcomes_path = map(task.output, ("documents", _verdicts(stage), _outcomes(stage)))
    outcomes = divide(_read(task), judge, staying, verdicts)
    write_json(outcomes_path, dict(outcomes))
    counts = Counter[str]()
    for of_source in outcomes.values():
        counts.update(of_source)
    return Tally(counts.total(), counts[KEPT], dict(counts))


def _read(task: ShardTask) -> Iterator[Document]:
    documents = task.input("documents")
    return documents_of(documents, documents)


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
    merge_filtered(paths, task.output(MERGED), Provenance(first.model, first.prompt_version, made))
    for stage in _dividing(config):
        write_json(task.out / f"{stage}.json", _dropped(tools, task, stage))
    return Tally(sum(numbers), sum(numbers))


def _dropped(tools: Tools, task: ShardTask, stage: str) -> dict[str, Any]:
    """What became of the documents of all shards in a stage, as the command of its name writes it."""
    outcomes: Iterator[Outcomes] = map(read_json, task.inputs[_outcomes(stage)])
    found = {
        "settings": {stage: asdict(getattr(tools.config, stage))},
        "outcomes": add_outcomes(outcomes),
    }
    if stage == "dedup":
        return found
    verdicts = chain.from_iterable(map(read_verdicts, task.inputs[_verdicts(stage)]))
    tasks = contamination(verdicts, tools.questions, tools.question_index)
    return found | {"tasks": {name: asdict(of_task) for name, of_task in tasks.items()}}


def _dividing(config: MineRunConfig) -> list[str]:
    """The stages that divide documents in those that stay and those that go, with verdicts."""
    return [*([] if config.duplicates else ["dedup"]), *(["decontaminate"] if config.against else [])]


def _verdicts(stage: str) -> str:
    return f"verdicts of {stage}"


def _outcomes(stage: str) -> str:
    return f"outcomes of {stage}"


def stages(config: MineRunConfig) -> list[Stage]:
    """Those that a run has, in order. The first reads shards, the last makes the file of all rationales."""
    documents = {"documents": prefilter.KEPT}

    def dividing(name: str) -> dict[str, str]:
        return documents | {_verdicts(name): "verdicts.jsonl", _outcomes(name): "outcomes.json"}

    found = [
        Stage("documents", read_shard, (SHARDS,), documents | {"ids": "ids.parquet"}),
        Stage("check", check_documents, ("ids",), {}, over_all=True),
    ]
    if config.encoder is not None:
        makes = documents | {"scores": PREFILTERED}
        found += [Stage("prefilter", prefilter_shard, ("documents",), makes, has_model=True)]
    if not config.duplicates:
        listed = {"duplicates": "duplicates.parquet"}
        found += [
            Stage("sign", sign, ("documents",), {"signatures": "signatures.parquet"}),
            Stage("duplicates", find_duplicates, ("signatures",), listed, over_all=True),
            Stage("dedup", dedup_shard, ("documents", *listed), dividing("dedup")),
        ]
    if config.against:
        name = "decontaminate"
        found += [Stage(name, decontaminate_shard, ("documents",), dividing(name))]
    told = [kind(name) for name in _dividing(config) for kind in (_outcomes, _verdicts)]
    triples = {"triples": TRIPLES}
    rationales = {"rationales": "rationales.parquet"}
    merged = {MERGED: "rationales.parquet"}
    here = address_of(config.model) is None
    return [
        *found,
        Stage("annotate", annotate_shard, ("documents",), triples, has_model=here),
        Stage("filter", filter_shard, ("triples",), rationales, has_model=True),
        Stage("merge", merge_shards, ("rationales", *told), merged, over_all=True),
    ]
