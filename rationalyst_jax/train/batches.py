"""Batches of packed token trees: a pure function of the store of trees, the seed and the step.

One epoch is a seeded permutation of the trees; epochs follow each other without a seam, and step s takes
the trees whose first example is among the s-th `batch_examples` of that stream. A batch is packed by best
fit into rows, and the rows are dealt to microbatches. Shapes are the same for all steps of a run, so the
step is compiled once; how many of the microbatches hold anything is data.

Which tree stands where follows from their sizes alone. So every process plans the whole batch alike, without
a word to the others, and then reads and lays out the trees of those rows that its own devices hold.

A microbatches, B rows of one (over all devices), T places of a row, P targets of a row.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rationalyst_jax.lm.devices.sharding import by_row, row_shards
from rationalyst_jax.lm.trees.tree import best_fit
from rationalyst_jax.train.config import TrainConfig

if TYPE_CHECKING:  # a step can be compiled and run where neither is installed
    import grain

    from rationalyst_jax.train.store import TreeStore


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainBatch:
    """One optimizer step's trees. Arrays int32 but for `weight`, float32.

    Target p has id `target` (-1: filler) and loss weight `weight`, and its log-probability is read from the
    hidden state at `place`. Only the first `microbatches` of the A microbatches hold trees.

    As `Batches` builds it, it is in NumPy arrays, which of B hold the rows of this process alone.
    """

    token_ABT: Array
    position_ABT: Array
    subtree_size_ABT: Array
    place_ABP: Array
    target_ABP: Array
    weight_ABP: Array
    microbatches: Array


def batch_shapes(mesh: Mesh, microbatches: int, rows: int, row_length: int, row_targets: int) -> TrainBatch:
    """The shapes of a batch of A, B, T and P, with how the mesh divides its rows."""

    def array(length: int, dtype: Any = np.int32) -> Any:
        return jax.ShapeDtypeStruct((microbatches, rows, length), dtype, sharding=by_row(mesh, 1))

    everywhere = NamedSharding(mesh, PartitionSpec())
    used: Any = jax.ShapeDtypeStruct((), np.int32, sharding=everywhere)
    return TrainBatch(
        token_ABT=array(row_length),
        position_ABT=array(row_length),
        subtree_size_ABT=array(row_length),
        place_ABP=array(row_targets),
        target_ABP=array(row_targets),
        weight_ABP=array(row_targets, np.float32),
        microbatches=used,
    )


def shuffled_steps(examples: np.ndarray, batch_examples: int, steps: int, seed: int) -> list[np.ndarray]:
    """Which trees each step takes, as indices, given how many `examples` each tree holds: int `[trees]`.

    No tree may hold more than `batch_examples`.
    """
    epochs = max(1, math.ceil(steps * batch_examples / examples.sum()))
    trees = len(examples)
    order = np.concatenate([np.random.default_rng((seed, e)).permutation(trees) for e in range(epochs)])
    step = (np.cumsum(examples[order]) - examples[order]) // batch_examples
    bounds = np.searchsorted(step, np.arange(steps + 1))
    return [order[start:end] for start, end in pairwise(bounds)]


def ordered_steps(examples: np.ndarray, batch_examples: int) -> list[np.ndarray]:
    """One pass over all trees in their own order, about `batch_examples` examples at a time; as above."""
    step = (np.cumsum(examples) - examples) // batch_examples
    return np.split(np.arange(len(examples)), np.flatnonzero(np.diff(step)) + 1)


def held_rows(mesh: Mesh, rows: int, devices: Iterable[Any]) -> np.ndarray:
    """Which of the `rows` of a microbatch are on one of these devices of the mesh, ascending."""
    held = np.zeros(rows, bool)
    of_device = by_row(mesh).devices_indices_map((rows,))
    for device in devices:
        held[of_device[device]] = True
    return np.flatnonzero(held)


class Batches(Sequence[TrainBatch]):
    """The batch of each step, built when asked for, all of one shape.

    `members` names the trees of each step by their numbers in the store; A and P are enough for every one of
    them, and B is at most `config.microbatch_rows` for each part into which the mesh divides rows.
    `batches[step]` is what this process holds of a batch, on the host; `place` puts it on the devices.
    """

    def __init__(self, store: "TreeStore", members: Sequence[np.ndarray], config: TrainConfig, mesh: Mesh):
        self.store = store
        self.members = members
        self.mesh = mesh
        self.row_length = config.row_length
        shards = row_shards(mesh)
        most_rows = 1
        most_targets = 1
        for chosen in members:
            row, _, rows = best_fit(store.nodes[chosen].tolist(), self.row_length)
            most_rows = max(most_rows, rows)
            most_targets = max(most_targets, int(np.bincount(row, store.targets[chosen]).max()))
        # No more rows than a batch can fill: an empty row is computed like any other.
        self.rows = shards * min(config.microbatch_rows, -(-most_rows // shards))
        self.held = held_rows(mesh, self.rows, mesh.local_devices)
        # Rounded up, so that runs on similar data share a compiled step. An empty microbatch costs nothing.
        self.microbatches = 1 << (-(-most_rows // self.rows) - 1).bit_length()
        self.row_targets = min(self.row_length, -(-most_targets // 32) * 32)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, step: int) -> TrainBatch:
        return self.build(step, self.held)

    def shapes(self) -> TrainBatch:
        """The shapes that all batches have, with how the mesh divides their rows."""
        return batch_shapes(self.mesh, self.microbatches, self.rows, self.row_length, self.row_targets)

    def tokens(self, step: int) -> int:
        """How many nodes the step's trees have."""
        return int(self.store.nodes[self.members[step]].sum())

    def sequence_tokens(self, step: int) -> int:
        """How many tokens the step's examples have separately."""
        return int(self.store.sequence_tokens[self.members[step]].sum())

    def targets(self, step: int) -> int:
        """How many nodes of the step's trees have a loss weight."""
        return int(self.store.targets[self.members[step]].sum())

    def attended(self, step: int) -> int:
        """How many pairs of nodes see each other: what attention costs."""
        return int(self.store.attended[self.members[step]].sum())

    def groups(self, step: int) -> list[str]:
        """The step's documents."""
        return list(dict.fromkeys(self.store.group[i] for i in self.members[step]))

    def build(self, step: int, held: np.ndarray) -> TrainBatch:
        """The step's batch in NumPy arrays: of each microbatch the rows `held` (below B, ascending) alone."""
        members = self.members[step]
        row, offset, rows = best_fit(self.store.nodes[members].tolist(), self.row_length)
        A = self.microbatches
        B = len(held)  # those of this process
        T = self.row_length
        P = self.row_targets
        token_ABT = np.zeros((A, B, T), np.int32)
        position_ABT = np.zeros((A, B, T), np.int32)
        subtree_size_ABT = np.ones((A, B, T), np.int32)
        place_ABP = np.zeros((A, B, P), np.int32)
        target_ABP = np.full((A, B, P), -1, np.int32)
        weight_ABP = np.zeros((A, B, P), np.float32)
        filled_AB = np.zeros((A, B), int)
        held_at = {r: i for i, r in enumerate(held.tolist())}
        for member, r, start in zip(members, row, offset, strict=True):
            a, r_of_microbatch = divmod(int(r), self.rows)
            if r_of_microbatch not in held_at:
                continue
            at = a, held_at[r_of_microbatch]
            tree = self.store[int(member)]
            here = (*at, slice(start, start + len(tree.tree)))
            token_ABT[here] = tree.tree.token
            position_ABT[here] = tree.tree.position
            subtree_size_ABT[here] = tree.tree.subtree_size
            targets = (*at, slice(filled_AB[at], filled_AB[at] + len(tree.node)))
            place_ABP[targets] = start + tree.node - tree.tree.parent_distance[tree.node]
            target_ABP[targets] = tree.tree.token[tree.node]
            weight_ABP[targets] = tree.weight
            filled_AB[at] += len(tree.node)
        arrays: Any = (token_ABT, position_ABT, subtree_size_ABT, place_ABP, target_ABP, weight_ABP)
        used: Any = np.asarray(-(-rows // self.rows), np.int32)
        return TrainBatch(*arrays, microbatches=used)

    def place(self, batch: TrainBatch) -> TrainBatch:
        """The global arrays, rows divided over the mesh, of what `batches[step]` is in every process."""
        return jax.tree.map(self._place, batch)

    def _place(self, held: np.ndarray) -> Array:
        if not held.ndim:
            everywhere = NamedSharding(self.mesh, PartitionSpec())
            return jax.make_array_from_callback((), everywhere, lambda _: held, held.dtype)

        def rows_of_a_device(index: Any) -> np.ndarray:
            start, end, _ = index[1].indices(self.rows)
            first = np.searchsorted(self.held, start)
            return held[:, first : first + end - start]

        shape = (self.microbatches, self.rows, held.shape[2])
        return jax.make_array_from_callback(shape, by_row(self.mesh, 1), rows_of_a_device, held.dtype)


def loader(batches: Batches, start: int = 0) -> "grain.DatasetIterator[TrainBatch]":
    """The batches from step `start` on, on the devices: while a step runs, the next one is built and placed.

    `get_state()` tells how many have been taken, as a JSON value that knows neither processes nor mesh, and
    `set_state` goes there. To be closed in the end, so that no thread goes on.
    """
    import grain

    read = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    placed = grain.MapDataset.source(batches).to_iter_dataset(read).map(batches.place)
    iterator = iter(grain.experimental.ThreadPrefetchIterDataset(placed, prefetch_buffer_size=1))
    grain.experimental.set_next_index(iterator, start)
    return iterator
