"""Batches of packed token trees: a pure function of the trees, the seed and the step.

One epoch is a seeded permutation of the trees; epochs follow each other without a seam, and step s takes
the trees whose first example is among the s-th `batch_examples` of that stream. A batch is packed by best
fit into rows, and the rows are dealt to microbatches. Shapes are the same for all steps of a run, so the
step is compiled once; how many of the microbatches hold anything is data.

A microbatches, B rows of one, T places of a row, P targets of a row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rationalyst_jax.lm.tree import best_fit, pack
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.train.examples import TargetTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """One optimizer step's trees. Arrays int32 but for `weight`, float32.

    Target p has id `target` (-1: filler) and loss weight `weight`, and its log-probability is read from the
    hidden state at `place`. Only the first `microbatches` of the A microbatches hold trees.
    """

    token_ABT: Array
    position_ABT: Array
    subtree_size_ABT: Array
    place_ABP: Array
    target_ABP: Array
    weight_ABP: Array
    microbatches: Array


def shuffled_steps(
    trees: Sequence[TargetTree], batch_examples: int, steps: int, seed: int
) -> list[np.ndarray]:
    """Which trees each step takes, as indices. No tree may hold more than `batch_examples` examples."""
    examples = np.array([tree.examples for tree in trees])
    epochs = math.ceil(steps * batch_examples / examples.sum())
    order = np.concatenate([np.random.default_rng((seed, e)).permutation(len(trees)) for e in range(epochs)])
    step = (np.cumsum(examples[order]) - examples[order]) // batch_examples
    bounds = np.searchsorted(step, np.arange(steps + 1))
    return [order[start:end] for start, end in pairwise(bounds)]


def ordered_steps(trees: Sequence[TargetTree], batch_examples: int) -> list[np.ndarray]:
    """One pass over all trees in their own order, about `batch_examples` examples at a time."""
    examples = np.array([tree.examples for tree in trees])
    step = (np.cumsum(examples) - examples) // batch_examples
    return np.split(np.arange(len(trees)), np.flatnonzero(np.diff(step)) + 1)


class Batches(Sequence[Batch]):
    """The batch of each step, built when asked for, all of one shape.

    `members` names the trees of each step; A and P are enough for every one of them.
    """

    def __init__(self, trees: Sequence[TargetTree], members: Sequence[np.ndarray], config: TrainConfig):
        self.trees, self.members = trees, members
        self.row_length, self.microbatch_rows = config.row_length, config.microbatch_rows
        size = np.array([len(tree.tree) for tree in trees])
        targets = np.array([len(tree.node) for tree in trees])
        most_rows = most_targets = 0
        for chosen in members:
            row, _, rows = best_fit(size[chosen].tolist(), self.row_length)
            most_rows = max(most_rows, rows)
            most_targets = max(most_targets, int(np.bincount(row, targets[chosen]).max()))
        # Rounded up, so that runs on similar data share a compiled step. An empty microbatch costs nothing.
        self.microbatches = 1 << (-(-most_rows // self.microbatch_rows) - 1).bit_length()
        self.row_targets = min(self.row_length, -(-most_targets // 32) * 32)

    def __len__(self) -> int:
        return len(self.members)

    def tokens(self, step: int) -> int:
        """How many nodes the step's trees have."""
        return sum(len(self.trees[i].tree) for i in self.members[step])

    def __getitem__(self, step: int) -> Batch:
        chosen = [self.trees[i] for i in self.members[step]]
        rows = pack([tree.tree for tree in chosen], self.row_length)
        R, T, P = self.microbatches * self.microbatch_rows, self.row_length, self.row_targets
        token_RT, position_RT = np.zeros((2, R, T), np.int32)
        subtree_size_RT = np.ones((R, T), np.int32)
        used = len(rows.token_RT)
        token_RT[:used] = rows.token_RT
        position_RT[:used] = rows.position_RT
        subtree_size_RT[:used] = rows.subtree_size_RT
        place_RP, target_RP = np.zeros((R, P), np.int32), np.full((R, P), -1, np.int32)
        weight_RP = np.zeros((R, P), np.float32)
        filled = np.zeros(R, int)
        for tree, r, offset in zip(chosen, rows.row, rows.offset, strict=True):
            here = slice(filled[r], filled[r] + len(tree.node))
            place_RP[r, here] = offset + tree.node - tree.tree.parent_distance[tree.node]
            target_RP[r, here] = tree.tree.token[tree.node]
            weight_RP[r, here] = tree.weight
            filled[r] = here.stop
        arrays = (token_RT, position_RT, subtree_size_RT, place_RP, target_RP, weight_RP)
        dealt = (jnp.asarray(a.reshape(self.microbatches, self.microbatch_rows, -1)) for a in arrays)
        return Batch(*dealt, microbatches=jnp.asarray(-(-used // self.microbatch_rows)))
