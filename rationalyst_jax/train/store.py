"""Token trees on disk: made once of a data set, then read by number, by every process and every later run.

A store is a folder of three files. `trees.array_record` holds the trees, one a record; `index.parquet` one
row for each, with the numbers that batches are planned by; `store.json` what the trees were made of, and a
fingerprint of them all. The folder is named by the fingerprint of what they were made of, so nothing out of
date is ever read; and one that is damaged is made again: it is a cache.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from rationalyst_jax.files.settings import digest
from rationalyst_jax.files.whole import read_json, whole, write_json
from rationalyst_jax.lm.devices.distributed import barrier, is_main
from rationalyst_jax.lm.trees.tree import TokenTree
from rationalyst_jax.train.examples import Example, TargetTree, forest

# To be raised when the files change, or the trees that are made of the same examples.
_FORMAT = 1
# What reading a file that is missing or damaged may raise, in three libraries.
_DAMAGE = (OSError, LookupError, RuntimeError, TypeError, ValueError)


class TreeStore(Sequence[TargetTree]):
    """The trees of a data set, read one at a time, from any thread.

    Of each tree: its `group`, and as int64 `[trees]` how many `nodes` and `targets` it has, how many
    `examples` were merged in it, how many `sequence_tokens` they have separately, how many pairs of nodes see
    each other (`attended`: the sum of its depths, as a node sees itself and what is above), the tokens of its
    `longest` sequence, and its `largest_token`. Of the store: how many examples were `dropped` as too long,
    and the `digest` of tokens, structure and weights in order.

    Raises ValueError naming the file that is missing or damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            about = read_json(path / "store.json")
            index = pq.read_table(path / "index.parquet")
            records = path / "trees.array_record"
            if (size := records.stat().st_size) != about["bytes"]:
                raise ValueError(f"{records} holds {size} of {about['bytes']} bytes")
            self._records = ArrayRecordDataSource(str(records))
            self.group: list[str] = index["group"].to_pylist()
            counts = {name: index[name].to_numpy() for name in index.column_names if name != "group"}
            self.nodes: np.ndarray = counts["nodes"]
            self.targets: np.ndarray = counts["targets"]
            self.examples: np.ndarray = counts["examples"]
            self.sequence_tokens: np.ndarray = counts["sequence_tokens"]
            self.attended: np.ndarray = counts["attended"]
            self.longest: np.ndarray = counts["longest"]
            self.largest_token: np.ndarray = counts["largest_token"]
            self.dropped: int = about["dropped"]
            self.digest: str = about["digest"]
        except _DAMAGE as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{path}: not a complete store of token trees: {reason}") from error

    def __len__(self) -> int:
        return len(self.group)

    def __getitem__(self, i: int) -> TargetTree:
        n = int(self.nodes[i])
        p = int(self.targets[i])
        try:
            record = np.frombuffer(self._records[i], "<i4")
        except RuntimeError as error:  # a checksum does not hold
            reason = str(error).partition(";")[0]
            raise ValueError(f"{self.path / 'trees.array_record'}: damaged, remove it: {reason}") from error
        node, weight = record[4 * n :].reshape(2, p)
        return TargetTree(
            group=self.group[i],
            tree=TokenTree(*record[: 4 * n].reshape(4, n)),
            node=node,
            weight=weight.view("<f4"),
            examples=int(self.examples[i]),
            sequence_tokens=int(self.sequence_tokens[i]),
        )


def open_store(
    folder: Path,
    key: Mapping[str, Any],
    examples: Callable[[], Iterable[Example]],
    max_tokens: int,
    max_examples: int,
) -> TreeStore:
    """The store of the trees that `forest` makes of `examples()`, which is not called if it is there already.

    `key`, JSON values, is to name all that decides what the examples are. Where processes are many all must
    call this, with a `folder` they share: process 0 builds while the others wait. Raises what `examples` and
    `forest` raise, and ValueError in the other processes where no store came to be.
    """
    made_of = {"format": _FORMAT, "max_tokens": max_tokens, "max_examples": max_examples, "key": dict(key)}
    path = folder / digest([json.dumps(made_of, sort_keys=True).encode()])
    try:
        if is_main() and not _is_whole(path):
            trees, dropped = forest(examples(), max_tokens, max_examples)
            shutil.rmtree(path, ignore_errors=True)
            _build(path, trees, {**made_of, "dropped": dropped})
    finally:  # what fails here must not leave the others waiting
        barrier(f"store of trees {path.name}")
    return TreeStore(path)


def _is_whole(path: Path) -> bool:
    try:
        TreeStore(path)
    except ValueError:
        return False
    return True


def _build(path: Path, trees: Iterable[TargetTree], about: Mapping[str, Any]) -> None:
    rows = []
    with whole(path) as unfinished:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
        unfinished.mkdir()
        records = unfinished / "trees.array_record"
        writer = ArrayRecordWriter(str(records), "group_size:1")  # each record can be read by itself

        def written() -> Iterator[bytes]:
            for tree in trees:
                rows.append(_index_row(tree))
                record = _record(tree)
                writer.write(record)
                yield record

        fingerprint = digest(written())
        writer.close()
        pq.write_table(pa.Table.from_pylist(rows), unfinished / "index.parquet")
        held = {"trees": len(rows), "digest": fingerprint, "bytes": records.stat().st_size}
        write_json(unfinished / "store.json", {**about, **held})


def _index_row(tree: TargetTree) -> dict[str, Any]:
    depth = tree.tree.position.astype(np.int64) + 1
    return {
        "group": tree.group,
        "nodes": len(tree.tree),
        "targets": len(tree.node),
        "examples": tree.examples,
        "sequence_tokens": tree.sequence_tokens,
        "attended": int(depth.sum()),
        "longest": int(depth.max()),
        "largest_token": int(tree.tree.token.max()),
    }


def _record(tree: TargetTree) -> bytes:
    """Little-endian, 4 bytes each: the tree's four arrays, then node and weight of the targets."""
    nodes = (tree.tree.token, tree.tree.position, tree.tree.subtree_size, tree.tree.parent_distance)
    return np.concatenate((*nodes, tree.node, tree.weight.view(np.int32)), dtype="<i4").tobytes()
