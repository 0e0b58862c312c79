"""The stage `dedup`: documents that are like an earlier one go."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rationalyst_jax.files.rows import Row, check_outside
from rationalyst_jax.files.settings import claimed, digest
from rationalyst_jax.files.whole import write_json
from rationalyst_jax.mine.config import DedupConfig
from rationalyst_jax.mine.deduplicate import find_duplicates, read_hashes, read_ids, sign_shard
from rationalyst_jax.mine.minhash import banding
from rationalyst_jax.mine.shards import Judge, Outcomes, find_shards
from rationalyst_jax.pipeline.shards import DOCUMENTS, DONE, VERDICTS, divide_shards, fingerprints

EXACT = "exact_duplicate"
NEAR = "near_duplicate"


def dedup(
    documents: Path,
    config: DedupConfig,
    out: Path,
    *,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
) -> Outcomes:
    """Drops documents that are duplicates of earlier ones, within a file or among the shards of a
    folder; how many documents of each source stayed or went, and why.

    Writes a file for each shard in `out/documents` (those that stay), `out/verdicts` (why each other one
    goes, and which one it is like) and `out/signatures`, and the counts to `out/dedup.json`. A killed run
    continues. `progress` is told how many shards are done; each is read twice. Raises ValueError for a
    malformed row, work begun with other settings or other documents, and while another process is at this
    work.
    """
    check_outside(documents, out, DOCUMENTS, VERDICTS)
    shards = find_shards(documents)
    made_of = fingerprints(shards)
    settings = {"dedup": asdict(config)}
    whole_made_of = digest(f"{name} {mark}".encode() for name, mark in made_of.items())
    with claimed(out / "dedup.config.json", settings, out / DONE):
        files = [out / "signatures" / f"{shard.name}.parquet" for shard in shards]
        for left in {*(out / "signatures").rglob("*.parquet")} - {*files}:  # of shards that are gone
            left.unlink()
        for number, (shard, file) in enumerate(zip(shards, files, strict=True)):
            progress(number, 2 * len(shards), 0)
            sign_shard(shard, made_of[shard.name], config, file)
        depends_on = dict.fromkeys(made_of, whole_made_of)  # a document may be like one of any shard
        gone = duplicates([shard.name for shard in shards], files, config)

        def dividing(done: int, total: int, tokens: int) -> None:
            progress(total + done, 2 * total, tokens)

        outcomes = divide_shards(shards, lambda shard: judge_by(gone(shard.name)), depends_on, out, dividing)
        write_json(out / "dedup.json", {"settings": settings, "outcomes": outcomes})
    return outcomes


def judge_by(gone: Mapping[int, Row]) -> Judge:
    """Documents go that have a verdict here, by their numbers in the shard."""
    return lambda number, _: gone.get(number)


def duplicates(
    shards: Sequence[str], files: Sequence[Path], config: DedupConfig
) -> Callable[[str], dict[int, Row]]:
    """Which documents of shards, so named and signed in `files`, are to go: by the name of a shard the
    verdicts, by the numbers of documents in it."""
    bands = banding(config.similarity, config.hashes)
    counts, text_hashes_N, signatures_NP = read_hashes(files)
    found = find_duplicates(text_hashes_N, signatures_NP, bands)
    ends = np.cumsum(counts, dtype=np.int64)
    first_of = dict(zip(shards, (ends - counts).tolist(), strict=True))
    count_of = dict(zip(shards, counts, strict=True))
    originals = np.unique(found.original_N[found.original_N >= 0])
    names: dict[int, tuple[str, str]] = {}  # shard and id of each document that others are like
    for shard, file in zip(shards, files, strict=True):
        first = first_of[shard]
        of_shard = originals[(originals >= first) & (originals < first + count_of[shard])].tolist()
        ids = read_ids(file) if of_shard else []
        names |= {original: (shard, ids[original - first]) for original in of_shard}

    def verdict(document: int) -> Row:
        shard, id = names[int(found.original_N[document])]
        return {
            "kept": False,
            "reason": EXACT if found.exact_N[document] else NEAR,
            "original": id,
            "original_shard": shard,
            "similarity": round(bands.similarity(int(found.agreeing_N[document])), 3),
        }

    def gone(shard: str) -> dict[int, Row]:
        first = first_of[shard]
        numbers = np.flatnonzero(found.original_N[first : first + count_of[shard]] >= 0).tolist()
        return {number: verdict(first + number) for number in numbers}

    return gone
