"""Token trees: sequences that share prefixes, merged, laid out and packed into fixed rows.

A forest of sequences is inserted in a trie and laid out in depth-first order. Four numbers per node do not
change when a tree moves inside a row: its token, its position (depth), its subtree size and the distance
back to its parent. docs/architecture.md derives why these are enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenTree:
    """One token tree in depth-first order; every array is int32 `[n]`, n nodes.

    token: token id. position: depth, 0 at the root (the RoPE position). subtree_size: nodes in the node's
    subtree, itself included. parent_distance: how many places back the parent stands, 0 for the root.
    """

    token: np.ndarray
    position: np.ndarray
    subtree_size: np.ndarray
    parent_distance: np.ndarray

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True)
class Rows:
    """Trees packed into R rows of T places, int32 `[R, T]`; tree i starts at `row[i], offset[i]`.

    Places no tree fills hold token 0, position 0, subtree size 1 and parent distance 0: a node that sees
    only itself and that nobody sees.
    """

    token_RT: np.ndarray
    position_RT: np.ndarray
    subtree_size_RT: np.ndarray
    parent_distance_RT: np.ndarray
    row: np.ndarray
    offset: np.ndarray


def build_tree(sequences: Sequence[Sequence[int]]) -> tuple[TokenTree, list[np.ndarray]]:
    """Merge sequences that start with the same token into one tree.

    Returns the tree, and for each sequence the places (int32, its length) of its tokens in the tree's
    depth-first order. Branches keep the order in which the sequences come. Raises ValueError for an empty
    sequence or sequences that do not share their first token (they have no common root).
    """
    if not all(sequences) or len({sequence[0] for sequence in sequences}) != 1:
        raise ValueError("build_tree: sequences must be non-empty and start with the same token")
    # The trie, nodes numbered in order of insertion: a parent always has a smaller number than its child.
    token: list[int] = []
    parent: list[int] = []
    children: list[dict[int, int]] = []
    paths: list[list[int]] = []
    for sequence in sequences:
        node = -1
        path = []
        branches: dict[int, int] = {sequence[0]: 0} if token else {}
        for t in sequence:
            child = branches.get(t)
            if child is None:
                child = len(token)
                token.append(t)
                parent.append(node)
                children.append({})
                branches[t] = child
            path.append(child)
            node = child
            branches = children[child]
        paths.append(path)

    n = len(token)
    size = np.ones(n, np.int32)
    position = np.zeros(n, np.int32)
    for node in range(n - 1, 0, -1):
        size[parent[node]] += size[node]
    place = np.zeros(n, np.int32)
    for node in range(n):  # in insertion order, so a node's place is known before its children's
        after = place[node] + 1
        for child in children[node].values():
            place[child] = after
            position[child] = position[node] + 1
            after += size[child]
    order = np.argsort(place)
    distance = place - place[np.maximum(parent, 0)]
    tree = TokenTree(
        token=np.asarray(token, np.int32)[order],
        position=position[order],
        subtree_size=size[order],
        parent_distance=distance[order].astype(np.int32),
    )
    return tree, [place[path] for path in paths]


def build_trees(
    sequences: Sequence[Sequence[int]], max_nodes: int
) -> list[tuple[TokenTree, dict[int, np.ndarray]]]:
    """Merge sequences as `build_tree` does, in as many trees as it takes to have at most `max_nodes` each.

    Every sequence is in one tree: a dictionary gives, by their numbers, the places of the tokens of those it
    holds. Trees are cut in depth-first order, so a tree repeats of its neighbour only the path to the cut.
    Raises ValueError for a sequence longer than `max_nodes`, and for what `build_tree` refuses.
    """
    tree, paths = build_tree(sequences)
    if len(tree) <= max_nodes:
        return [(tree, dict(enumerate(paths)))]
    parts: list[list[int]] = []
    nodes = max_nodes
    before = np.zeros(0, np.int32)
    for i in sorted(range(len(paths)), key=lambda i: paths[i][-1]):
        path = paths[i]
        if len(path) > max_nodes:
            raise ValueError(f"a sequence of {len(path)} tokens does not fit in rows of {max_nodes}")
        both = min(len(path), len(before))
        parted = path[:both] != before[:both]
        nodes += len(path) - (int(parted.argmax()) if parted.any() else both)
        if nodes > max_nodes:
            parts.append([])
            nodes = len(path)
        parts[-1].append(i)
        before = path
    trees = []
    for part in parts:
        tree, paths = build_tree([sequences[i] for i in part])
        trees.append((tree, dict(zip(part, paths, strict=True))))
    return trees


def chain(sequence: Sequence[int]) -> TokenTree:
    """The tree that never branches: one plain sequence."""
    n = len(sequence)
    return TokenTree(
        token=np.asarray(sequence, np.int32),
        position=np.arange(n, dtype=np.int32),
        subtree_size=np.arange(n, 0, -1, dtype=np.int32),
        parent_distance=np.minimum(np.arange(n), 1).astype(np.int32),
    )


def best_fit(sizes: Sequence[int], row_length: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Best-fit decreasing bin packing: row and offset (int64) of each item, and the number of rows.

    Raises ValueError for an item longer than a row.
    """
    row = np.zeros(len(sizes), np.int64)
    offset = np.zeros(len(sizes), np.int64)
    rows_with: list[list[int]] = [[] for _ in range(row_length + 1)]  # rows by their free places
    rows = 0
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        size = sizes[item]
        if size > row_length:
            raise ValueError(f"a tree of {size} tokens does not fit in rows of {row_length}")
        free = next((f for f in range(size, row_length) if rows_with[f]), None)
        if free is None:
            free = row_length
            rows_with[row_length] = [rows]
            rows = rows + 1
        row[item] = rows_with[free].pop()
        offset[item] = row_length - free
        rows_with[free - size].append(int(row[item]))
    return row, offset, rows


def pack(trees: Sequence[TokenTree], row_length: int, *, multiple: int = 1) -> Rows:
    """Pack trees into as few rows of `row_length` places as best fit finds, or up to the next `multiple`.

    Raises ValueError for a tree longer than a row.
    """
    row, offset, R = best_fit([len(tree) for tree in trees], row_length)
    R = -(-R // multiple) * multiple
    token_RT, position_RT, parent_distance_RT = np.zeros((3, R, row_length), np.int32)
    subtree_size_RT = np.ones((R, row_length), np.int32)
    for tree, r, o in zip(trees, row, offset, strict=True):
        here = slice(o, o + len(tree))
        token_RT[r, here] = tree.token
        position_RT[r, here] = tree.position
        subtree_size_RT[r, here] = tree.subtree_size
        parent_distance_RT[r, here] = tree.parent_distance
    return Rows(token_RT, position_RT, subtree_size_RT, parent_distance_RT, row, offset)
