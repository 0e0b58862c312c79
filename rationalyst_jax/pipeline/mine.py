"""The stage `mine`: documents, or annotations that are there already, become triples."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.parts import ALONE, DividedFile, HostShard
from rationalyst_jax.files.rows import Row, check_outside
from rationalyst_jax.mine.annotate import annotate, of_run, read_usage, usage_path
from rationalyst_jax.mine.config import AnnotateConfig
from rationalyst_jax.mine.documents import Annotated, read_annotations, read_documents
from rationalyst_jax.mine.store import Provenance, write_triples
from rationalyst_jax.mine.summary import MineSummary, summarize_mined
from rationalyst_jax.mine.triples import extract
from rationalyst_jax.pipeline.models import Models, Place
from rationalyst_jax.prompts.prompt import PromptSet
from rationalyst_jax.roles.usage import Usage

MIN_SIMILARITY = 0.9
TRIPLES = "triples.parquet"
ANNOTATIONS = "annotations.jsonl"


def mine(
    documents: Path,
    annotator: Place,
    models: Models,
    prompts: PromptSet,
    config: AnnotateConfig,
    out: Path,
    *,
    min_similarity: float = MIN_SIMILARITY,
    round: int = 1,
    shard: HostShard = ALONE,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
) -> tuple[MineSummary, Usage]:
    """Has a model annotate the documents of a file or a folder of shards, and cuts them into triples.

    Writes `annotations.jsonl`, where a killed run continues, and `triples.parquet` into the folder `out`. The
    second value is what all annotations took, those before a kill included (`annotations.usage.jsonl`).
    round: of an experiment's rounds of mining, which the triples' file records. shard: the part of the
    documents that is this process's (`files/parts.py`); where others are still at work it raises
    OthersAtWork.

    Raises ValueError for a malformed row, for surprise asked of a model that gives no log-probabilities, for
    work begun with other settings, and while another process is at this work.
    """
    check_outside(documents, out, ANNOTATIONS)
    _check(min_similarity)
    found = read_documents(documents)
    check_annotator(annotator, models, prompts, config)
    settings = {
        "model": models.known(annotator).name,
        "prompts": prompts.version,
        "annotate": asdict(config),
    }
    texts = {document.id: document.text for document in found}

    def name_of(row: Row) -> str | None:
        name = str(row.get("id"))
        return name if name in texts and row.get("input") == texts[name] else None

    def annotated(numbers: Sequence[int], file: Path) -> list[Annotated]:
        [role] = models.roles(annotator)
        return annotate(found, role, prompts, config, file, progress, only=numbers)

    def check(path: Path, rows: Sequence[tuple[str, Row]]) -> None:
        document_of = of_run(found)
        for place, row in rows:
            document_of(place, row)

    record = out / "annotations.config.json"
    names = list(texts)
    file = out / ANNOTATIONS
    divided = DividedFile(file, record, settings, names, config.block, name_of, usage_path, check)
    if shard != ALONE:
        with divided.part(shard) as (part, numbers):
            annotated(numbers, part)
    with divided.whole(shard) as file, locked(out / TRIPLES):
        annotations = annotated(range(len(found)), file)
        how: dict[str, object] = {
            "annotate": asdict(config) | {"int8": models.engine.int8},
            "annotations": None,
            "base": models.base(annotator),
            "round": round,
        }
        return _cut(annotations, str(annotator), how, prompts, out, min_similarity), read_usage(file)


def check_annotator(annotator: Place, models: Models, prompts: PromptSet, config: AnnotateConfig) -> None:
    """Raises as `Models.check`, and ValueError for surprise asked of a model that gives no
    log-probabilities."""
    models.check(annotator, prompts, config.prompts, config.suppress)
    if config.most_places is not None and models.known(annotator).tokenizer is None:
        raise ValueError(
            f"annotate: most_places needs log-probabilities of texts, which the chat at {annotator} does not "
            "give: name the endpoint's tokenizer, or take all places"
        )


def import_annotations(
    annotations: Path,
    annotator: str,
    prompts: PromptSet,
    out: Path,
    *,
    source: str | None = None,
    min_similarity: float = MIN_SIMILARITY,
) -> MineSummary:
    """Cuts a JSONL file of documents that were annotated before, here or elsewhere, into `triples.parquet` in
    the folder `out`.

    annotator: the name of the model that wrote them. source: of rows that name none (by default the file's
    name). Raises ValueError for a malformed row, and while another process writes the same file.
    """
    _check(min_similarity)
    how = {"annotate": None, "annotations": str(annotations)}
    with locked(out / TRIPLES):
        found = read_annotations(annotations, source)
        return _cut(found, annotator, how, prompts, out, min_similarity)


def _cut(
    annotations: Sequence[Annotated],
    annotator: str,
    how: dict[str, object],
    prompts: PromptSet,
    out: Path,
    min_similarity: float,
) -> MineSummary:
    extraction = extract(annotations, min_similarity)
    provenance = Provenance(annotator, prompts.version, how | {"min_similarity": min_similarity})
    write_triples(out / TRIPLES, extraction.triples, provenance)
    return summarize_mined(extraction)


def _check(min_similarity: float) -> None:
    if not 0 <= min_similarity <= 1:
        raise ValueError(f"mine: min_similarity must be between 0 and 1, got {min_similarity}")
