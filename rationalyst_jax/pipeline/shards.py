"""Stages that divide documents in those that stay and those that go, shard by shard."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rationalyst_jax.files.settings import file_digest
from rationalyst_jax.files.whole import read_json, write_json
from rationalyst_jax.mine.shards import Judge, Outcomes, Shard, add_outcomes, divide

DOCUMENTS = "documents"
VERDICTS = "verdicts"
DONE = "done"


def fingerprints(shards: Sequence[Shard]) -> dict[str, str]:
    """Of each shard's bytes, by its name."""
    return {shard.name: file_digest(shard.path) for shard in shards}


def divide_shards(
    shards: Sequence[Shard],
    judge_of: Callable[[Shard], Judge],
    out: Path,
    progress: Callable[[int, int, int], None],
) -> Outcomes:
    """Divides each shard (`mine/shards.py::divide`) in `out/documents/NAME.jsonl` and
    `out/verdicts/NAME.jsonl`, but those whose marker `out/done/NAME.json` says that an earlier run did; how
    many documents of each source met which outcome, in all shards.

    `progress` is told how many shards are done, of how many.
    """
    markers = [out / DONE / f"{shard.name}.json" for shard in shards]
    for number, (shard, marker) in enumerate(zip(shards, markers, strict=True)):
        progress(number, len(shards), 0)
        if not marker.exists():
            staying, verdicts = (out / kind / f"{shard.name}.jsonl" for kind in (DOCUMENTS, VERDICTS))
            write_json(marker, divide(shard.documents(), judge_of(shard), staying, verdicts))
    progress(len(shards), len(shards), 0)
    return add_outcomes(map(read_json, markers))
