"""Stages that divide documents in those that stay and those that go, shard by shard."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rationalyst_jax.files.settings import file_digest
from rationalyst_jax.files.whole import read_json, write_json
from rationalyst_jax.mine.shards import Judge, Outcomes, Shard, divide

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
    """Divides each shard (`mine/shards.py::divide`), but those whose marker `out/done/NAME.json` says that an
    earlier run did; how many documents of each source met which outcome, in all shards.

    `progress` is told how many shards are done, of how many.
    """
    total: dict[str, dict[str, int]] = {}
    for number, shard in enumerate(shards):
        progress(number, len(shards), 0)
        marker = out / DONE / f"{shard.name}.json"
        if not marker.exists():
            write_json(marker, divide(shard, judge_of(shard), out))
        for source, outcomes in read_json(marker).items():
            of_source = total.setdefault(source, {})
            for outcome, count in outcomes.items():
                of_source[outcome] = of_source.get(outcome, 0) + count
    progress(len(shards), len(shards), 0)
    return total
