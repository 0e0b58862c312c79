"""Stages that divide documents in those that stay and those that go, shard by shard.

They do not go over shards as `sharded.py` does: what they write is itself a folder of shards, of the same
names, in which a killed run leaves the same bytes as an undisturbed one, and nothing of shards that are gone,
and the first malformed row ends them.
"""

from collections.abc import Callable, Mapping, Sequence
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
    made_of: Mapping[str, str],
    out: Path,
    progress: Callable[[int, int, int], None],
) -> Outcomes:
    """Divides each shard (`mine/shards.py::divide`) in `out/documents/NAME.jsonl` and
    `out/verdicts/NAME.jsonl`, but those whose marker `out/done/NAME.json` says that an earlier run did; how
    many documents of each source met which outcome, in all shards.

    made_of: of each shard by its name, a fingerprint of all that its outcome depends on. What an earlier run
    wrote of shards that are gone is removed. `progress` is told how many shards are done, of how many.
    """
    for marker in sorted((out / DONE).rglob("*.json")):
        name = marker.relative_to(out / DONE).as_posix().removesuffix(".json")
        if name not in made_of:
            for kind in (DOCUMENTS, VERDICTS):
                (out / kind / f"{name}.jsonl").unlink(missing_ok=True)
            marker.unlink()
    markers = [out / DONE / f"{shard.name}.json" for shard in shards]
    for number, (shard, marker) in enumerate(zip(shards, markers, strict=True)):
        progress(number, len(shards), 0)
        if not marker.exists() or read_json(marker)["made_of"] != made_of[shard.name]:
            marker.unlink(missing_ok=True)
            staying, verdicts = (out / kind / f"{shard.name}.jsonl" for kind in (DOCUMENTS, VERDICTS))
            outcomes = divide(shard.documents(), judge_of(shard), staying, verdicts)
            write_json(marker, {"made_of": made_of[shard.name], "outcomes": outcomes})
    progress(len(shards), len(shards), 0)
    return add_outcomes(read_json(marker)["outcomes"] for marker in markers)
