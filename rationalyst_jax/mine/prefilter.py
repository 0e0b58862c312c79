"""Which documents are like reasoning? Their cosine with references (arXiv 2410.01044, section 3.1).

A document is as near to the references as its best window: a long text is worth mining where part of it
reasons. Every document's cosine is written, kept or not.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rationalyst_jax.files.rows import Row, append_rows, kept_rows
from rationalyst_jax.files.settings import digest, package_versions
from rationalyst_jax.files.whole import whole
from rationalyst_jax.lm.model.flops import encoder_flops
from rationalyst_jax.lm.trees.likelihood import one_ahead
from rationalyst_jax.lm.weights.encoder import EncoderCheckpoint
from rationalyst_jax.mine import windows
from rationalyst_jax.mine.config import PrefilterConfig
from rationalyst_jax.mine.documents import Document
from rationalyst_jax.mine.encode import encode
from rationalyst_jax.mine.references import References
from rationalyst_jax.mine.windows import Cutter, Window
from rationalyst_jax.mine.workers import in_order

Item = TypeVar("Item")

PAPER_ALPHA = 0.3
PREFILTERED = "prefiltered.parquet"  # what `write_prefiltered` writes is called so everywhere


@dataclass(frozen=True)
class PrefilteredDocument:
    """How near a document is to the references (`cosine`), which of their sets is nearest to it, the
    characters `start` to `end` of its best window, and whether it is kept."""

    id: str
    source: str
    cosine: float
    nearest: str
    start: int
    end: int
    kept: bool


PREFILTERED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("cosine", pa.float64(), nullable=False),
        pa.field("nearest", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("kept", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class EncodedText:
    """The windows of a text, and their unit vectors, float32 `[windows, D]`."""

    windows: Sequence[Window]
    vectors_XD: np.ndarray


class TextEncoder:
    """An encoder with its weights, and how it reads texts. tokens, flops: how many tokens it has computed so
    far, and with how many operations (`lm/model/flops.py`)."""

    def __init__(self, checkpoint: EncoderCheckpoint, config: PrefilterConfig):
        self.tokens = 0
        self.flops = 0
        self._cutter = cutter_of(checkpoint, config)
        self._sizes = checkpoint.config
        self._config = config
        self._encoder = checkpoint.load(config.dtype)

    def each(self, blocks: Iterable[Sequence[str]]) -> Iterator[list[EncodedText]]:
        """The texts of each block, encoded. Workers cut the next blocks meanwhile."""
        cut = in_order(self._cutter, blocks, self._config.workers, preload=windows.__name__)
        for of_texts, vectors in one_ahead(map(self._begin, cut)):
            lengths = [len(window.tokens) for of_text in of_texts for window in of_text]
            self.tokens += sum(lengths)
            self.flops += encoder_flops(self._sizes, sum(lengths), sum(length**2 for length in lengths))
            ends = np.cumsum([len(of_text) for of_text in of_texts])
            yield list(map(EncodedText, of_texts, np.split(vectors(), ends[:-1])))

    def all(self, texts: Sequence[str]) -> list[EncodedText]:
        """Texts encoded, as many at a time as in a block."""
        blocks = _blocks(texts, self._config.block)
        return [text for block in self.each(blocks) for text in block]

    def _begin(self, of_texts: list[list[Window]]) -> tuple[list[list[Window]], Callable[[], np.ndarray]]:
        tokens = [window.tokens for of_text in of_texts for window in of_text]
        vectors = encode(
            self._encoder,
            tokens,
            eps=self._sizes.layer_norm_eps,
            max_tokens=self._cutter.max_tokens,
            batch_tokens=self._config.batch_tokens,
        )
        return of_texts, vectors


def cutter_of(checkpoint: EncoderCheckpoint, config: PrefilterConfig) -> Cutter:
    """What cuts texts for an encoder. Raises ValueError for a window of more tokens than it has positions."""
    if config.window is not None and config.window > checkpoint.config.max_tokens:
        raise ValueError(
            f"prefilter: window is {config.window}, the encoder has {checkpoint.config.max_tokens} positions"
        )
    return Cutter(checkpoint.pieces, config.window or checkpoint.max_tokens, config.normalisation)


def score_documents(
    documents: Sequence[Document],
    references: References,
    alpha: float,
    encoder: TextEncoder,
    block: int,
    path: Path,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
) -> list[PrefilteredDocument]:
    """How near each document is to the references, in their order.

    Scores are written to the JSONL file `path`, `block` documents at a time. A file that is already there is
    continued, and ends as that of an uninterrupted run; blocks with a document whose text has changed since
    are scored again. `progress` is told how many documents are scored, of how many, and how many tokens this
    call has computed. Raises ValueError for a document whose cosine is no number (a broken model).
    """

    def check(place: str, row: Row) -> int | None:
        if row.keys() != {"number", "text", "cosine", "nearest", "start", "end"}:
            raise ValueError(f"{place}: not a row of scores")
        number = row["number"]
        known = number < len(documents) and row["text"] == _digest(documents[number])
        return number if known else None

    rows = kept_rows(path, check)
    blocks = _blocks(range(len(documents)), block)
    # A block is scored as a whole: the last bits of a vector depend on what is computed beside it.
    missing = [numbers for numbers in blocks if not rows.keys() >= set(numbers)]
    done = len(documents) - sum(map(len, missing))
    before = encoder.tokens
    progress(done, len(documents), 0)
    texts = ([documents[number].text for number in numbers] for numbers in missing)
    for numbers, encoded in zip(missing, encoder.each(texts), strict=True):
        new = [
            _row(number, documents[number], text, references)
            for number, text in zip(numbers, encoded, strict=True)
        ]
        append_rows(path, new)
        rows |= {row["number"]: row for row in new}
        done += len(numbers)
        progress(done, len(documents), encoder.tokens - before)
    return [_prefiltered(document, rows[i], alpha) for i, document in enumerate(documents)]


def write_prefiltered(
    path: Path, documents: Sequence[PrefilteredDocument], made_by: Mapping[str, object]
) -> None:
    """Writes a Parquet file, one row per document, kept or not; `made_by` (JSON values) goes to its
    metadata."""
    metadata = {"prefilter": json.dumps(made_by, sort_keys=True), "packages": json.dumps(package_versions())}
    table = pa.Table.from_pylist(list(map(asdict, documents)), PREFILTERED_SCHEMA.with_metadata(metadata))
    with whole(path) as unfinished:
        pq.write_table(table, unfinished)


def _row(number: int, document: Document, text: EncodedText, references: References) -> Row:
    best, fit = references.best(text.vectors_XD)
    if not math.isfinite(fit.cosine):
        raise ValueError(f"document {document.id!r}: its cosine with the references is {fit.cosine}")
    window = text.windows[best]
    found = {"cosine": fit.cosine, "nearest": fit.nearest, "start": window.start, "end": window.end}
    return {"number": number, "text": _digest(document), **found}


def _prefiltered(document: Document, row: Row, alpha: float) -> PrefilteredDocument:
    return PrefilteredDocument(
        document.id,
        document.source,
        row["cosine"],
        row["nearest"],
        row["start"],
        row["end"],
        kept=row["cosine"] >= alpha,
    )


def _digest(document: Document) -> str:
    return digest([document.text.encode()])


def _blocks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[first : first + size] for first in range(0, len(items), size)]
