"""Examples of fine-tuning, merged into token trees that carry a loss weight per node.

The rationales of one document share its text. In one tree that text is computed once, and a node's loss
weight is the sum of the weights of the examples in which it is a target: loss and gradient equal those of
the separate sequences.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rationalyst_jax.lm.trees.tree import TokenTree, build_tree, chain


@dataclass(frozen=True)
class Example:
    """One training sequence. `weights[i]` is the loss weight of `tokens[i]` as a target (the first is 0).

    Examples of one `group` (a document) share a tree and never fall on both sides of a validation split.
    """

    tokens: Sequence[int]
    weights: Sequence[float]
    group: str


@dataclass(frozen=True)
class TargetTree:
    """A token tree and what is to be learned on it: the nodes with a loss weight.

    node: int32 `[p]`, places in the tree, ascending. weight: float32 `[p]`, above 0. examples: how many
    sequences were merged. sequence_tokens: how many tokens they have separately.
    """

    group: str
    tree: TokenTree
    node: np.ndarray
    weight: np.ndarray
    examples: int
    sequence_tokens: int


def forest(
    examples: Iterable[Example], max_tokens: int, max_examples: int
) -> tuple[Iterator[TargetTree], int]:
    """Merges the examples of each group into trees of at most `max_tokens` nodes and `max_examples` examples.

    Returns the trees, each made when it is asked for, in the order in which their groups appear; and how many
    examples were longer than `max_tokens`: these are dropped, never cut. A group that needs more becomes
    several trees. Raises ValueError for an example without a target or with a negative weight, and when no
    example is left.
    """
    groups: dict[str, list[Example]] = {}
    dropped = 0
    for number, example in enumerate(examples):
        _check(example, number)
        if len(example.tokens) > max_tokens:
            dropped += 1
        else:  # as arrays, 8 bytes a token: all examples are held until their groups are complete
            kept = Example(array("i", example.tokens), array("f", example.weights), example.group)
            groups.setdefault(example.group, []).append(kept)
    if not groups:
        raise ValueError(f"no example to train on ({dropped} longer than {max_tokens} tokens)")

    def trees() -> Iterator[TargetTree]:
        for group in groups.values():
            while group:
                tree, taken = _largest_tree(group[:max_examples], max_tokens)
                yield tree
                group = group[taken:]

    return trees(), dropped


def split_by_group(groups: Sequence[str], fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(training, validation), as indices: each group goes to validation with probability `fraction`.

    Its hash decides: the side of a group depends on its name and the seed alone, not on the other groups.
    """

    def held_out(group: str) -> bool:
        hashed = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
        return int.from_bytes(hashed) < fraction * 2**64

    validation = np.fromiter(map(held_out, groups), bool, len(groups))
    return np.flatnonzero(~validation), np.flatnonzero(validation)


def _check(example: Example, number: int) -> None:
    where = f"example {number} of group {example.group!r}"
    if len(example.tokens) != len(example.weights):
        raise ValueError(f"{where}: {len(example.tokens)} tokens but {len(example.weights)} weights")
    if not any(example.weights[1:]) or min(example.weights) < 0:
        raise ValueError(f"{where}: needs a target of positive weight and none below 0")


def _largest_tree(group: Sequence[Example], max_tokens: int) -> tuple[TargetTree, int]:
    """The tree of the longest prefix of `group` (by halving) that fits, and its length."""
    taken = len(group)
    while True:
        tree, weight = _merge(group[:taken])
        if len(tree) <= max_tokens:
            break
        taken = max(1, taken // 2)
    node = np.flatnonzero(weight).astype(np.int32)
    sequence_tokens = sum(len(example.tokens) for example in group[:taken])
    return TargetTree(group[0].group, tree, node, weight[node], taken, sequence_tokens), taken


def _merge(group: Sequence[Example]) -> tuple[TokenTree, np.ndarray]:
    """The tree of a group and the loss weight of each of its nodes, float32."""
    if len(group) == 1:  # most of pre-training: no trie needed
        tree = chain(group[0].tokens)
        paths = [np.arange(len(tree))]
    else:
        tree, paths = build_tree([example.tokens for example in group])
    weight = np.zeros(len(tree), np.float32)
    for example, path in zip(group, paths, strict=True):
        weight[path[1:]] += np.asarray(example.weights, np.float32)[1:]
    return tree, weight
