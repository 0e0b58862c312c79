"""Which documents are duplicates of earlier ones?

Documents are taken in the order of shards and rows. One is dropped when it is a duplicate of an earlier
document that was kept: an exact one, whose text is the same but for case and white space, or a near-duplicate
(`minhash.py`). So of documents that are alike the first stays, and whether two documents are alike never
depends on a third one.

The signatures of a shard depend on that shard alone: shards can be signed in any order and place. Only
`find_duplicates` sees all of them.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rationalyst_jax.files.settings import digest
from rationalyst_jax.files.whole import whole
from rationalyst_jax.mine.config import DedupConfig
from rationalyst_jax.mine.documents import Document
from rationalyst_jax.mine.minhash import Banding, MinHash, banding
from rationalyst_jax.mine.shards import Shard
from rationalyst_jax.mine.words import Hashes, hash_text, normalized, words_of

_MADE_OF = b"made_of"


@dataclass(frozen=True)
class Signatures:
    """What is compared of N documents: hashes of their normalized texts [N], and signatures [N, places]."""

    ids: Sequence[str]
    text_hashes_N: Hashes
    signatures_NP: NDArray[np.uint8]


@dataclass(frozen=True)
class Duplicates:
    """For each of N documents the earlier one that it is a duplicate of, -1 for one that is kept.

    exact_N: whether both texts are the same. agreeing_N: in how many places of the signatures both agree.
    """

    original_N: NDArray[np.int32]
    exact_N: NDArray[np.bool_]
    agreeing_N: NDArray[np.int16]


def sign(documents: Iterable[Document], config: DedupConfig) -> Signatures:
    """The signatures of documents, in their order."""
    places = banding(config.similarity, config.hashes).places
    minhash = MinHash(places, config.shingle, config.seed)
    ids = []
    text_hashes = []
    signatures = [np.zeros((0, places), np.uint8)]
    for document in documents:
        ids.append(document.id)
        text_hashes.append(hash_text(normalized(document.text)))
        signatures.append(minhash.signature(words_of(document.text), text_hashes[-1])[None])
    return Signatures(ids, np.array(text_hashes, np.uint64), np.concatenate(signatures))


def find_duplicates(text_hashes_N: Hashes, signatures_NP: NDArray[np.uint8], bands: Banding) -> Duplicates:
    """Which of N documents are duplicates of earlier ones, and of which: of the kept one that it agrees with
    in most places, and of several such of one with the same text, or else of the first.

    docs/deduplication.md says how much memory that takes. Raises ValueError for more documents than it can
    count.
    """
    documents = len(text_hashes_N)
    found = Duplicates(
        np.full(documents, -1, np.int32), np.zeros(documents, bool), np.zeros(documents, np.int16)
    )
    buckets = _Buckets(signatures_NP, bands)
    for document in buckets.shared_documents():
        others = buckets.kept_beside(document)
        agreeing = (signatures_NP[others] == signatures_NP[document]).sum(1)
        same_text = text_hashes_N[others] == text_hashes_N[document]
        if agreeing.max(initial=0) < bands.needed:
            buckets.keep(document)
            continue
        closest = np.argmax(2 * agreeing + same_text)
        found.original_N[document] = others[closest]
        found.exact_N[document] = same_text[closest]
        found.agreeing_N[document] = agreeing[closest]
    return found


class _Buckets:
    """Documents by the bands of their signatures: those that agree in a band are in one bucket of that band.

    A bucket lists those of its documents that are kept so far, in order.
    """

    def __init__(self, signatures_NP: NDArray[np.uint8], bands: Banding):
        documents = len(signatures_NP)
        if documents * bands.bands >= 2**32:
            raise ValueError(
                f"dedup: {documents} documents are more than are compared at once, which is "
                f"{2**32 // bands.bands}: deduplicate parts of them"
            )
        self._bucket_NB = np.full((documents, bands.bands), -1, np.int32)  # -1: alone in it
        sizes = [np.zeros(0, np.int64)]
        buckets = 0
        for band in range(bands.bands):
            keys = _keys(signatures_NP[:, band * bands.rows : (band + 1) * bands.rows])
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
            size = np.diff(starts, append=documents)
            shared = size > 1
            number = np.where(shared, buckets + np.cumsum(shared) - 1, -1)
            self._bucket_NB[order, band] = np.repeat(number, size)
            buckets += int(shared.sum())
            sizes.append(size[shared])
        ends = np.cumsum(np.concatenate(sizes))
        self._start = np.concatenate([[0], ends])
        self._end = self._start[:-1].copy()
        self._kept = np.zeros(self._start[-1], np.int32)

    def shared_documents(self) -> Iterator[int]:
        """The documents that share a bucket with another one, in order."""
        return map(int, np.flatnonzero((self._bucket_NB >= 0).any(1)))

    def kept_beside(self, document: int) -> NDArray[np.int32]:
        """The kept documents that share a bucket with this one, in order."""
        buckets = self._buckets(document)
        return np.unique(np.concatenate([self._kept[self._start[b] : self._end[b]] for b in buckets]))

    def keep(self, document: int) -> None:
        buckets = self._buckets(document)
        self._kept[self._end[buckets]] = document
        self._end[buckets] += 1

    def _buckets(self, document: int) -> NDArray[np.int32]:
        of_document = self._bucket_NB[document]
        return of_document[of_document >= 0]


def _keys(band_NR: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Up to 8 bytes of each document as one number, [N]."""
    documents, rows = band_NR.shape
    padded = np.zeros((documents, 8), np.uint8)
    padded[:, :rows] = band_NR
    return padded.view(np.uint64)[:, 0]


def sign_shard(shard: Shard, made_of: str, config: DedupConfig, path: Path) -> None:
    """Writes the signatures of a shard's documents to the Parquet file `path`, unless it holds them already.

    made_of: fingerprint of the shard's bytes. Raises as `Shard.documents`.
    """
    fingerprint = digest([json.dumps(asdict(config), sort_keys=True).encode(), made_of.encode()]).encode()
    if path.is_file() and (pq.read_schema(path).metadata or {}).get(_MADE_OF) == fingerprint:
        return
    signatures = sign(shard.documents(), config)
    count, places = signatures.signatures_NP.shape
    packed = [None, pa.py_buffer(signatures.signatures_NP)]
    columns = {
        "id": pa.array(signatures.ids, pa.string()),
        "text_hash": pa.array(signatures.text_hashes_N),
        "signature": pa.FixedSizeBinaryArray.from_buffers(pa.binary(places), count, packed),
    }
    with whole(path) as unfinished:
        pq.write_table(pa.table(columns, metadata={_MADE_OF: fingerprint}), unfinished)


def read_ids(path: Path) -> list[str]:
    """The ids of a file of signatures."""
    return pq.read_table(path, columns=["id"])["id"].to_pylist()


def read_hashes(paths: Sequence[Path]) -> tuple[list[int], Hashes, NDArray[np.uint8]]:
    """How many documents each file of signatures has, and of all of them, in order: the hashes of their
    normalized texts [N], and their signatures [N, places]."""
    counts = [pq.read_metadata(path).num_rows for path in paths]
    places = pq.read_schema(paths[0]).field("signature").type.byte_width
    text_hashes_N = np.empty(sum(counts), np.uint64)
    signatures_NP = np.empty((sum(counts), places), np.uint8)
    first = 0
    for path, count in zip(paths, counts, strict=True):
        table = pq.read_table(path, columns=["text_hash", "signature"])
        packed = b"".join(table["signature"].to_pylist())
        text_hashes_N[first : first + count] = table["text_hash"].to_numpy()
        signatures_NP[first : first + count] = np.frombuffer(packed, np.uint8).reshape(count, places)
        first += count
    return counts, text_hashes_N, signatures_NP
