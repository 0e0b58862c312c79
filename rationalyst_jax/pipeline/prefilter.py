"""The stage `prefilter`: which documents are like the tasks' training questions?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rationalyst_jax.files.prepared import Source
from rationalyst_jax.files.rows import check_outside, write_rows
from rationalyst_jax.files.settings import claimed
from rationalyst_jax.lm.weights.encoder import open_encoder
from rationalyst_jax.mine.config import PrefilterConfig
from rationalyst_jax.mine.documents import Document, read_documents
from rationalyst_jax.mine.prefilter import (
    PAPER_ALPHA,
    PREFILTERED,
    TextEncoder,
    cutter_of,
    score_documents,
    write_prefiltered,
)
from rationalyst_jax.mine.references import (
    References,
    calibrated_alpha,
    read_references,
    recall_of,
    reference_centroids,
    references_digest,
)
from rationalyst_jax.mine.summary import PrefilterSummary, SetSummary, summarize_prefiltered

KEPT = "documents.jsonl"

Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Prefilter:
    """References and an encoder, opened once for any number of tables of documents.

    settings: what decides a result, as JSON values; work begun with others is not continued.
    """

    encoder: TextEncoder
    references: References
    alpha: float
    sets: Mapping[str, SetSummary]
    block: int
    settings: Mapping[str, Any]


def prefilter(
    documents: Path,
    references: Mapping[str, Source],
    encoder: Path,
    config: PrefilterConfig,
    out: Path,
    *,
    progress: Progress = lambda done, total, tokens: None,
) -> PrefilterSummary:
    """Keeps the documents of a table that are near enough to training questions of the tasks.

    documents: a file or a folder of shards, as `read_documents` reads them. references: by the names of their
    tasks. Writes into the folder `out` as `prefilter_documents`. Raises as that, `open_prefilter` and
    `read_documents`, and for malformed documents before anything is computed.
    """
    check_outside(documents, out, KEPT)
    found = read_documents(documents)
    out.mkdir(parents=True, exist_ok=True)  # what cannot be is said before the work
    return prefilter_documents(found, open_prefilter(references, encoder, config), out, progress=progress)


def open_prefilter(references: Mapping[str, Source], encoder: Path, config: PrefilterConfig) -> Prefilter:
    """Encodes the references, and calibrates alpha where none is given.

    Raises as `read_references` and `open_encoder`, and ValueError for a window that the encoder cannot read.
    """
    checkpoint = open_encoder(encoder)
    window = cutter_of(checkpoint, config).max_tokens
    sets = read_references(references, config.max_references, config.held_out, config.seed)
    texts = list(dict.fromkeys(text for one in sets for text in (*one.texts, *one.held_out)))
    text_encoder = TextEncoder(checkpoint, config)
    vectors = {text: encoded.vectors_XD for text, encoded in zip(texts, text_encoder.all(texts), strict=True)}
    centroids = reference_centroids(sets, vectors, config.centroids)
    cosines = {one.name: [centroids.best(vectors[text])[1].cosine for text in one.held_out] for one in sets}
    alpha = calibrated_alpha(cosines, config.recall) if config.alpha is None else config.alpha
    summaries = {
        one.name: SetSummary(
            len(one.texts),
            len(one.held_out),
            recall_of(cosines[one.name], alpha),
            recall_of(cosines[one.name], PAPER_ALPHA),
        )
        for one in sets
    }
    how = config.decides() | {"window": window}
    settings = {"encoder": checkpoint.fingerprint, "references": references_digest(sets), "prefilter": how}
    return Prefilter(text_encoder, centroids, alpha, summaries, config.block, settings)


def prefilter_documents(
    documents: Sequence[Document],
    opened: Prefilter,
    out: Path,
    *,
    progress: Progress = lambda done, total, tokens: None,
) -> PrefilterSummary:
    """Writes the kept ones of `documents` to `documents.jsonl` in the folder `out`, in their order, and to
    `prefiltered.parquet` every document's id, source, cosine, nearest set and whether it is kept.

    Until these are written, scores are in `scores.partial.jsonl`, where a killed run continues. Raises
    ValueError for work begun with other settings, and while another process is at this work.
    """
    partial = out / "scores.partial.jsonl"
    record = out / "scores.config.json"
    with claimed(record, opened.settings, partial):
        scored = score_documents(
            documents, opened.references, opened.alpha, opened.encoder, opened.block, partial, progress
        )
        kept = (document for document, score in zip(documents, scored, strict=True) if score.kept)
        write_rows(out / KEPT, map(asdict, kept))
        write_prefiltered(out / PREFILTERED, scored, {**opened.settings, "alpha": opened.alpha})
        partial.unlink()
        record.unlink()
    return PrefilterSummary(opened.alpha, opened.sets, summarize_prefiltered(scored))
