"""Token trees: building, laying out, packing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rationalyst_jax.lm.trees.tree import best_fit, build_tree, build_trees, chain, pack

# A tiny alphabet makes sequences share prefixes; all start with token 9, as BOS does.
sequences_of_one_tree = st.lists(
    st.lists(st.integers(0, 2), max_size=12).map(lambda tail: [9, *tail]), min_size=1, max_size=8
)


@given(sequences_of_one_tree)
def test_walking_up_from_each_place_spells_the_sequence(sequences):
    tree, paths = build_tree(sequences)
    for sequence, path in zip(sequences, paths, strict=True):
        place = path[-1]
        spelled = []
        for _ in sequence:
            spelled.append(tree.token[place])
            place -= tree.parent_distance[place]
        assert spelled[::-1] == sequence
        assert tree.token[path].tolist() == sequence
        assert tree.position[path].tolist() == list(range(len(sequence)))


@given(sequences_of_one_tree)
def test_a_tree_has_one_node_per_distinct_prefix(sequences):
    tree, _ = build_tree(sequences)
    prefixes = {tuple(sequence[:end]) for sequence in sequences for end in range(1, len(sequence) + 1)}
    assert len(tree) == len(prefixes)


@given(sequences_of_one_tree)
def test_the_one_comparison_is_the_ancestor_relation(sequences):
    tree, _ = build_tree(sequences)
    for i in range(len(tree)):
        ancestors = {i}
        place = i
        while tree.parent_distance[place]:
            place -= tree.parent_distance[place]
            ancestors.add(place)
        assert {j for j in range(len(tree)) if 0 <= i - j < tree.subtree_size[j]} == ancestors


def test_a_single_sequence_is_the_chain():
    built, [path] = build_tree([[5, 5, 6, 5]])
    plain = chain([5, 5, 6, 5])
    for name in ("token", "position", "subtree_size", "parent_distance"):
        np.testing.assert_array_equal(getattr(built, name), getattr(plain, name))
    assert path.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("sequences", [[[]], [[1, 2], [2, 1]]])
def test_sequences_without_a_common_root_are_refused(sequences):
    with pytest.raises(ValueError, match="start with the same token"):
        build_tree(sequences)


@given(st.lists(st.integers(1, 20), max_size=30))
def test_packing_puts_every_tree_in_one_row_without_overlap(sizes):
    row, offset, rows = best_fit(sizes, 20)
    taken = np.zeros((rows, 20), int)
    for size, r, o in zip(sizes, row, offset, strict=True):
        taken[r, o : o + size] += 1
    assert taken.max(initial=0) <= 1 and taken.sum() == sum(sizes)
    assert rows <= 2 * -(-sum(sizes) // 20)  # more than half of all but one row is filled


def test_packed_trees_keep_their_four_numbers():
    trees = [chain([7] * n) for n in (3, 5, 2)]
    rows = pack(trees, 8)
    assert rows.token_RT.shape == (2, 8)
    for tree, r, o in zip(trees, rows.row, rows.offset, strict=True):
        np.testing.assert_array_equal(rows.subtree_size_RT[r, o : o + len(tree)], tree.subtree_size)
        np.testing.assert_array_equal(rows.position_RT[r, o : o + len(tree)], tree.position)


def test_a_tree_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="a tree of 9 tokens does not fit in rows of 8"):
        pack([chain([1] * 9)], 8)


@given(st.lists(st.lists(st.integers(0, 2), max_size=8), min_size=1, max_size=12), st.integers(9, 30))
def test_a_tree_that_is_too_large_is_cut_and_nothing_lost_or_doubled(tails, max_nodes):
    sequences = [[9, *tail] for tail in tails]
    trees = build_trees(sequences, max_nodes)
    assert sorted(i for _, paths in trees for i in paths) == list(range(len(sequences)))
    for tree, paths in trees:
        assert len(tree) <= max_nodes
        assert len(set(np.concatenate(list(paths.values())).tolist())) == len(tree)  # nothing superfluous
        for i, path in paths.items():
            assert tree.token[path].tolist() == sequences[i]
    nodes = len(build_tree(sequences)[0])
    if nodes <= max_nodes:
        assert len(trees) == 1
    else:  # neighbours repeat no more than the path to the cut, which is shorter than the longest sequence
        assert sum(len(tree) for tree, _ in trees) <= nodes + (len(trees) - 1) * (
            max(map(len, sequences)) - 1
        )


def test_a_sequence_longer_than_a_tree_may_be_is_refused():
    with pytest.raises(ValueError, match="a sequence of 4 tokens does not fit in rows of 3"):
        build_trees([[1, 2], [1, 3, 3, 3]], 3)
