"""The stage `mine`: documents, or copies annotated elsewhere, become triples."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.settings import claimed
from rationalyst_jax.mine.annotate import annotate
from rationalyst_jax.mine.config import AnnotateConfig
from rationalyst_jax.mine.documents import Annotation, read_annotations, read_documents
from rationalyst_jax.mine.store import Provenance, write_triples
from rationalyst_jax.mine.summary import MineSummary, summarize_mined
from rationalyst_jax.mine.triples import extract
from rationalyst_jax.pipeline.models import Models, Place
from rationalyst_jax.prompts.prompt import PromptSet

MIN_SIMILARITY = 0.9
TRIPLES = "triples.parquet"


def mine(
    documents: Path,
    annotator: Place,
    models: Models,
    prompts: PromptSet,
    config: AnnotateConfig,
    out: Path,
    *,
    min_similarity: float = MIN_SIMILARITY,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
) -> MineSummary:
    """Has a model annotate the documents of a JSONL file, and cuts them into triples.

    Writes `annotations.jsonl`, where a killed run continues, and `triples.parquet` into the folder `out`.
    Raises ValueError for a malformed row, for work begun with other settings, and while another process is at
    this work.
    """
    _check(min_similarity)
    found = read_documents(documents)
    models.check(annotator, prompts, ["annotate"])
    settings = {
        "model": models.known(annotator).name,
        "prompts": prompts.version,
        "annotate": asdict(config),
    }
    file = out / "annotations.jsonl"
    with claimed(out / "annotations.config.json", settings, file), locked(out / TRIPLES):
        [role] = models.roles(annotator)
        annotations = annotate(found, role, prompts, config, file, progress)
        how = {"annotate": asdict(config) | {"int8": models.engine.int8}, "annotations": None}
        return _cut(annotations, str(annotator), how, prompts, out, min_similarity)


def import_annotations(
    annotations: Path,
    annotator: str,
    prompts: PromptSet,
    out: Path,
    *,
    source: str | None = None,
    min_similarity: float = MIN_SIMILARITY,
) -> MineSummary:
    """Cuts a JSONL file of documents that were annotated elsewhere into `triples.parquet` in the folder
    `out`.

    annotator: the name of the model that wrote them. source: of rows that name none (by default the file's
    name). Raises ValueError for a malformed row, and while another process writes the same file.
    """
    _check(min_similarity)
    how = {"annotate": None, "annotations": str(annotations)}
    with locked(out / TRIPLES):
        found = read_annotations(annotations, source)
        return _cut(found, annotator, how, prompts, out, min_similarity)


def _cut(
    annotations: Sequence[Annotation],
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
