"""From rationales to batches on devices: nothing is lost, cut or seen twice, however the work is divided."""

import json
import math
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh
from test_train import random_examples

from rationalyst_jax.lm.devices.sharding import by_row, make_mesh
from rationalyst_jax.lm.engine.requests import Generation
from rationalyst_jax.lm.trees.tree import best_fit, pack
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.mine.likelihood_filter import filter_pairs
from rationalyst_jax.mine.triples import Triple
from rationalyst_jax.prompts.prompt import load_prompts
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.traces import Step
from rationalyst_jax.reason.trajectory import Roles, Setting, Trajectory
from rationalyst_jax.roles.role import Role
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.train.batches import (
    Batches,
    TrainBatch,
    held_rows,
    loader,
    ordered_steps,
    shuffled_steps,
)
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.train.examples import Example, TargetTree, forest, split_by_group
from rationalyst_jax.train.rationales import read_rationales
from rationalyst_jax.train.store import TreeStore, open_store

CONFIG = TrainConfig(batch_examples=8, row_length=64, microbatch_rows=2)
MESHES = [(1, 1, 1), (1, 8, 1), (2, 2, 2)]


def no_examples() -> Iterable[Example]:
    raise AssertionError("the store was there")


def store_of(folder: Path, examples: list[Example]) -> TreeStore:
    return open_store(folder, {"seed": 0}, lambda: examples, CONFIG.row_length, CONFIG.batch_examples)


def mesh_of(shape: tuple[int, int, int]) -> Mesh:
    return make_mesh(*shape, jax.devices()[: np.prod(shape)])


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TreeStore:
    return store_of(tmp_path_factory.mktemp("store"), random_examples(60))


def members_of(store: TreeStore, steps: int = 12) -> list[np.ndarray]:
    return shuffled_steps(store.examples, CONFIG.batch_examples, steps, seed=0)


def batches_of(store: TreeStore, shape: tuple[int, int, int] = (1, 1, 1)) -> Batches:
    return Batches(store, members_of(store), CONFIG, mesh_of(shape))


def arrays_of(tree: TargetTree) -> tuple[np.ndarray, ...]:
    one = tree.tree
    return (one.token, one.position, one.subtree_size, one.parent_distance, tree.node, tree.weight)


def assert_same_trees(found: Iterable[TargetTree], expected: Iterable[TargetTree]) -> None:
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(arrays_of(one), arrays_of(other), strict=True):
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
        named = (one.group, one.examples, one.sequence_tokens)
        assert named == (other.group, other.examples, other.sequence_tokens)


def assert_same_batch(one: TrainBatch, other: TrainBatch) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


# ---- Examples and trees ----


def test_a_node_weighs_what_the_examples_that_target_it_weigh():
    shared = [
        Example((1, 5, 6, 7), (0, 0, 1, 1), "a"),
        Example((1, 5, 6, 8), (0, 0, 0.5, 2), "a"),
    ]
    [tree], _ = forest(shared, 8, 8)
    assert tree.tree.token[tree.node].tolist() == [6, 7, 8]
    assert tree.weight.tolist() == [1.5, 1, 2]
    assert tree.examples == 2 and tree.sequence_tokens == 8 and len(tree.tree) == 5


def test_too_long_examples_are_dropped_whole_and_counted():
    examples = [Example((1,) * 9, (0,) * 8 + (1,), "a"), Example((1,) * 8, (0,) * 7 + (1,), "b")]
    trees, dropped = forest(examples, 8, 8)
    assert dropped == 1
    assert [(tree.group, len(tree.tree)) for tree in trees] == [("b", 8)]
    with pytest.raises(ValueError, match=r"no example to train on \(2 longer than 7 tokens\)"):
        forest(examples, 7, 8)


def test_a_group_too_large_for_one_tree_becomes_several_and_loses_nothing():
    trees = list(forest([Example((1, 2, i, i, i), (0, 0, 1, 1, 1), "a") for i in range(3, 20)], 12, 2)[0])
    assert all(len(tree.tree) <= 12 and tree.examples <= 2 for tree in trees)
    assert sum(tree.examples for tree in trees) == 17
    assert sum(tree.weight.sum() for tree in trees) == 17 * 3


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example((1, 2), (0,), "a"), "2 tokens but 1 weights"),
        (Example((1, 2), (1, 0), "a"), "target of positive weight"),
        (Example((1, 2, 3), (0, 1, -1), "a"), "none below 0"),
    ],
)
def test_an_unusable_example_is_named(example, message):
    with pytest.raises(ValueError, match=rf"example 0 of group 'a'.*{message}"):
        forest([example], 8, 8)


def test_validation_never_shares_a_document_with_training():
    groups = [tree.group for tree in forest(random_examples(400), 64, 2)[0]]
    assert len(groups) > len(set(groups)) == 400
    training, validation = split_by_group(groups, 0.2, seed=3)
    assert sorted([*training, *validation]) == list(range(len(groups)))
    kept, held_out = ({groups[i] for i in side} for side in (training, validation))
    assert not kept & held_out
    assert 50 <= len(held_out) <= 110  # 80 expected, standard deviation 8
    half = groups[: len(groups) // 2]
    assert {half[i] for i in split_by_group(half, 0.2, seed=3)[1]} <= held_out
    assert {groups[i] for i in split_by_group(groups, 0.2, seed=4)[1]} != held_out


# ---- Store ----

token_lists = st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 3), min_size=1, max_size=40)
weight_values = st.floats(0, 1e6, width=32)


@st.composite
def any_examples(draw) -> list[Example]:
    """Examples of a few groups, with common prefixes, any weights, and some too long for their store."""
    examples = []
    for _ in range(draw(st.integers(1, 12))):
        tokens = [0, *draw(token_lists)]
        weights = [0.0, *draw(st.lists(weight_values, min_size=len(tokens) - 1, max_size=len(tokens) - 1))]
        weights[-1] += 0.1
        examples.append(Example(tokens, weights, draw(st.sampled_from(["a", "b", "ü/\n", ""]))))
    return examples


@settings(max_examples=30)
@given(any_examples())
def test_trees_come_back_from_the_store_bit_for_bit(examples):
    fits = [example for example in examples if len(example.tokens) <= 30]
    with TemporaryDirectory() as folder:
        if not fits:
            with pytest.raises(ValueError, match="no example to train on"):
                open_store(Path(folder), {}, lambda: examples, 30, 4)
            return
        for source in (lambda: iter(examples), no_examples):  # written, then read by another run
            store = open_store(Path(folder), {}, source, 30, 4)
            assert_same_trees(store, forest(examples, 30, 4)[0])
            assert store.dropped == len(examples) - len(fits)
            assert store.longest.max() == max(len(example.tokens) for example in fits)
            assert store.largest_token.max() == max(max(example.tokens) for example in fits)
            assert store.sequence_tokens.sum() == sum(len(example.tokens) for example in fits)


def test_the_index_holds_the_numbers_of_each_tree(store):
    for i, tree in enumerate(store):
        assert store.group[i] == tree.group and store.examples[i] == tree.examples
        assert store.nodes[i] == len(tree.tree) and store.targets[i] == len(tree.node)
        apart = np.arange(len(tree.tree))[:, None] - np.arange(len(tree.tree))
        assert store.attended[i] == np.sum((apart >= 0) & (apart < tree.tree.subtree_size))


def test_a_store_is_made_anew_for_each_thing_that_decides_about_it(tmp_path):
    examples = random_examples(5)
    asked = [({"a": 1, "b": 2}, 64, 8), ({"a": 1, "b": 3}, 64, 8), ({"a": 1}, 64, 8)]
    asked += [({"a": 1, "b": 2}, 63, 8), ({"a": 1, "b": 2}, 64, 1)]
    stores = [open_store(tmp_path, key, lambda: examples, *sizes) for key, *sizes in asked]
    assert len({store.path for store in stores}) == len(asked)
    for (key, *sizes), store in zip(asked, stores, strict=True):
        reordered = dict(reversed(key.items()))
        assert open_store(tmp_path, reordered, no_examples, *sizes).digest == store.digest
    assert stores[0].digest == stores[1].digest != stores[4].digest


def test_the_digest_sees_tokens_structure_weights_and_order(tmp_path):
    examples = [Example((1, 2, 3), (0, 1, 1), "a"), Example((1, 2, 4), (0, 1, 1), "b")]
    other_token = replace(examples[0], tokens=(1, 2, 5))
    other_weight = replace(examples[0], weights=(0, 1, 2))
    data = [
        examples,
        examples[::-1],
        [other_token, examples[1]],
        [other_weight, examples[1]],
        [replace(example, group="a") for example in examples],
    ]
    digests = [store_of(tmp_path / str(i), examples).digest for i, examples in enumerate(data)]
    assert len(set(digests)) == len(data)


@pytest.mark.parametrize("file", ["store.json", "index.parquet", "trees.array_record"])
@pytest.mark.parametrize("harm", ["missing", "empty", "half", "garbage", "only"])
def test_a_damaged_store_is_made_again(file, harm, tmp_path):
    examples = random_examples(20)
    store = store_of(tmp_path, examples)
    path = store.path / file
    whole = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "only":
        for other in store.path.iterdir():
            if other != path:
                other.unlink()
    else:
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "garbage": b"[]"}[harm])
    with pytest.raises(ValueError, match=str(store.path)) as caught:
        TreeStore(store.path)
    assert "\n" not in str(caught.value)
    again = store_of(tmp_path, examples)
    assert again.digest == store.digest and path.read_bytes() == whole
    assert_same_trees(again, forest(examples, CONFIG.row_length, CONFIG.batch_examples)[0])


def test_what_a_kill_left_of_a_store_is_written_over(tmp_path):
    made = store_of(tmp_path / "made", random_examples(20))
    unfinished = tmp_path / "new" / f"{made.path.name}.unfinished"
    shutil.copytree(made.path, unfinished)
    (unfinished / "store.json").unlink()
    assert store_of(tmp_path / "new", random_examples(20)).digest == made.digest
    assert [path.name for path in (tmp_path / "new").iterdir()] == [made.path.name]


def test_examples_that_fail_leave_no_store(tmp_path):
    def examples():
        yield from random_examples(3)
        raise ValueError("row 7: no text")

    with pytest.raises(ValueError, match="row 7: no text"):
        open_store(tmp_path, {}, examples, 64, 8)
    assert not list(tmp_path.iterdir())


def test_a_record_that_changed_on_the_disk_is_named(tmp_path):
    store = store_of(tmp_path, random_examples(20))
    records = store.path / "trees.array_record"
    content = bytearray(records.read_bytes())
    content[1000] ^= 255  # of the first records; most of so short a file is padding
    records.write_bytes(content)
    with pytest.raises(ValueError, match=r"trees\.array_record: damaged, remove it") as caught:
        list(TreeStore(store.path))
    assert "\n" not in str(caught.value)


def test_a_store_is_read_from_many_threads(store):
    expected = [arrays_of(tree) for tree in store]
    wrong = []

    def read(seed: int) -> None:
        for i in np.random.default_rng(seed).permutation(len(store)).tolist():
            same = map(np.array_equal, arrays_of(store[i]), expected[i])
            wrong.extend([i] if not all(same) else [])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- Steps ----


def test_each_epoch_visits_every_tree_once_and_steps_do_not_depend_on_the_end():
    examples = np.random.default_rng(0).integers(1, 5, 50)
    members = shuffled_steps(examples, 8, steps=2 * examples.sum() // 8 + 1, seed=0)
    seen = np.concatenate(members)
    assert sorted(seen[:50].tolist()) == sorted(seen[50:100].tolist()) == list(range(50))
    assert seen[:50].tolist() != seen[50:100].tolist()
    for short, long in zip(shuffled_steps(examples, 8, steps=5, seed=0), members, strict=False):
        assert short.tolist() == long.tolist()
    assert shuffled_steps(examples, 8, steps=0, seed=0) == []


def test_the_shuffle_is_the_seeded_permutation_it_has_always_been():
    order = np.concatenate([np.random.default_rng((7, epoch)).permutation(5) for epoch in range(2)])
    members = shuffled_steps(np.ones(5, int), 2, steps=5, seed=7)
    assert [chosen.tolist() for chosen in members] == order.reshape(5, 2).tolist()


def test_validation_takes_every_tree_once_in_order():
    examples = np.random.default_rng(0).integers(1, 5, 50)
    members = ordered_steps(examples, 8)
    assert np.concatenate(members).tolist() == list(range(50))
    assert all(examples[chosen].sum() < 8 + 4 for chosen in members)


# ---- Batches ----


def trees_in(batch: TrainBatch) -> Counter:
    """The trees of a batch with their targets, read back from its rows; how often each is there."""
    found = Counter()
    token_ABT, position_ABT, size_ABT = map(
        np.asarray, (batch.token_ABT, batch.position_ABT, batch.subtree_size_ABT)
    )
    A, B, T = token_ABT.shape
    for at in np.ndindex(A, B):
        asked = np.asarray(batch.target_ABP)[at] >= 0
        place, target, weight = (
            np.asarray(x)[at][asked] for x in (batch.place_ABP, batch.target_ABP, batch.weight_ABP)
        )
        assert not np.asarray(batch.weight_ABP)[at][~asked].any()
        start = 0
        while start < T:
            end = start + size_ABT[at][start]
            if end - start > 1:  # an example has a token to read and one to learn: one alone is filler
                here = (place >= start) & (place < end)
                nodes = [x[at][start:end].tobytes() for x in (token_ABT, position_ABT, size_ABT)]
                asked_here = zip(place[here] - start, target[here], weight[here], strict=True)
                found[(*nodes, tuple(sorted(asked_here)))] += 1
            start = end
    return found


def trees_of(trees: Iterable[TargetTree]) -> Counter:
    """The same of the trees as they are."""
    found = Counter()
    for tree in trees:
        token, position, size, distance, node, weight = arrays_of(tree)
        asked = sorted(zip(node - distance[node], token[node], weight, strict=True))
        found[(token.tobytes(), position.tobytes(), size.tobytes(), tuple(asked))] += 1
    return found


@pytest.mark.parametrize("shape", MESHES)
def test_a_batch_holds_exactly_its_trees_with_their_targets_on_every_mesh(shape, store):
    batches = batches_of(store, shape)
    shards = shape[0] * shape[1]
    needed = max(best_fit(store.nodes[m].tolist(), CONFIG.row_length)[2] for m in batches.members)
    assert batches.rows == shards * min(2, math.ceil(needed / shards))  # none that no step could fill
    shapes = set()
    for step, chosen in enumerate(batches.members):
        batch = batches.place(batches[step])
        trees = [store[i] for i in chosen]
        assert trees_in(batch) == trees_of(trees)
        used = np.any(batch.weight_ABP, axis=(1, 2))
        assert used[: int(batch.microbatches)].all() and not used[int(batch.microbatches) :].any()
        assert batches.tokens(step) == sum(len(tree.tree) for tree in trees)
        assert batches.sequence_tokens(step) == sum(tree.sequence_tokens for tree in trees)
        assert batches.attended(step) == sum(int((tree.tree.position + 1).sum()) for tree in trees)
        assert batches.groups(step) == list(dict.fromkeys(tree.group for tree in trees))
        assert batch.token_ABT.sharding == by_row(batches.mesh, 1)
        assert batch.microbatches.sharding.is_fully_replicated
        shapes.add(tuple((x.shape, x.dtype) for x in jax.tree.leaves(batch)))
    assert len(shapes) == 1


def test_rows_are_those_of_the_packing_dealt_in_order(store):
    batches = batches_of(store)
    for batch, chosen in zip(batches, batches.members, strict=True):
        rows = pack([store[i].tree for i in chosen], CONFIG.row_length)
        for dealt, packed in (
            (batch.token_ABT, rows.token_RT),
            (batch.position_ABT, rows.position_RT),
            (batch.subtree_size_ABT, rows.subtree_size_RT),
        ):
            np.testing.assert_array_equal(dealt.reshape(-1, CONFIG.row_length)[: len(packed)], packed)


class CountingStore(TreeStore):
    """Counts how often each tree is read."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.reads = Counter()

    def __getitem__(self, i: int) -> TargetTree:
        self.reads[i] += 1
        return super().__getitem__(i)


@pytest.mark.parametrize(
    ("shape", "processes", "sharers"),
    [
        ((1, 8, 1), [[0, 1, 2, 3], [4, 5, 6, 7]], 1),
        ((1, 8, 1), [[0, 3, 5, 6], [1, 2, 4, 7]], 1),  # rows that do not lie together
        ((2, 2, 2), [[0, 1], [2, 3], [4, 5], [6, 7]], 1),
        ((2, 2, 2), [[0, 2, 4, 6], [1, 3, 5, 7]], 2),  # the same rows, other parts of the model
        ((2, 2, 2), [[0, 1, 2, 4], [3, 5, 6, 7]], None),
    ],
)
def test_processes_build_their_own_rows_of_one_batch(shape, processes, sharers, store):
    counting = CountingStore(store.path)
    batches = batches_of(counting, shape)
    held = [
        held_rows(batches.mesh, batches.rows, [batches.mesh.devices.flat[i] for i in devices])
        for devices in processes
    ]
    assert sorted(set(np.concatenate(held).tolist())) == list(range(batches.rows))
    for step in range(3):
        whole = batches[step]
        for rows in held:
            counting.reads.clear()
            part = batches.build(step, rows)
            expected = [x if x.ndim == 0 else x[:, rows] for x in jax.tree.leaves(whole)]
            for x, y in zip(jax.tree.leaves(part), expected, strict=True):
                np.testing.assert_array_equal(x, y)
            assert counting.reads.total() == trees_in(part).total()  # none that stands in others' rows
            assert set(counting.reads.values()) <= {1}
    if sharers:
        assert Counter(np.concatenate(held).tolist()) == dict.fromkeys(range(batches.rows), sharers)


# ---- Loader ----


def test_the_loader_brings_every_batch_once_and_in_order(store):
    batches = batches_of(store, (1, 8, 1))
    with closing(loader(batches)) as iterator:
        brought = list(iterator)
    assert len(brought) == len(batches)
    for batch, expected in zip(brought, batches, strict=True):
        assert isinstance(batch.token_ABT, jax.Array)
        assert_same_batch(batch, expected)


@pytest.mark.parametrize("taken", [0, 1, 5, 12])
def test_a_state_brings_back_the_batches_that_were_not_taken_on_any_mesh(taken, store):
    batches = batches_of(store)
    with closing(loader(batches)) as iterator:
        for _ in range(taken):
            next(iterator)
        state = json.loads(json.dumps(iterator.get_state()))
    assert state == {"next_index": taken}
    for shape in MESHES:
        batches = batches_of(store, shape)
        with closing(loader(batches)) as iterator:
            iterator.set_state(state)
            rest = list(iterator)
        assert len(rest) == len(batches) - taken
        for step, batch in enumerate(rest, start=taken):
            assert_same_batch(batch, batches[step])
        with closing(loader(batches, taken)) as iterator:
            assert iterator.get_state() == state
            assert len(list(iterator)) == len(rest)


def test_batches_are_made_ahead_and_not_counted_as_taken(store):
    counting = CountingStore(store.path)
    batches = batches_of(counting)
    enough = sum(map(len, batches.members[:3]))
    ready = threading.Event()
    place = batches.place

    def placed(batch: TrainBatch) -> TrainBatch:
        if counting.reads.total() >= enough:
            ready.set()
        return place(batch)

    batches.place = placed
    with closing(loader(batches)) as iterator:
        next(iterator)
        assert ready.wait(60)  # two more steps have been built, and nobody asked
        assert iterator.get_state() == {"next_index": 1}
        next(iterator)
        assert iterator.get_state() == {"next_index": 2}


def test_a_state_set_amid_a_run_goes_back(store):
    batches = batches_of(store)
    with closing(loader(batches)) as iterator:
        first = [next(iterator) for _ in range(2)]
        state = iterator.get_state()
        third = [next(iterator) for _ in range(3)]
        iterator.set_state(state)
        assert iterator.get_state() == state
        for batch, again in zip(third, iterator, strict=False):
            assert_same_batch(batch, again)
    assert_same_batch(first[0], batches[0])


def test_what_fails_while_a_batch_is_made_fails_where_it_is_asked_for(store):
    class Broken(TreeStore):
        def __getitem__(self, i: int) -> TargetTree:
            raise ValueError("trees.array_record: damaged")

    with (
        closing(loader(batches_of(Broken(store.path)))) as iterator,
        pytest.raises(ValueError, match="damaged"),
    ):
        next(iterator)


def test_a_closed_loader_leaves_no_thread(store):
    before = set(threading.enumerate())
    for taken in (0, 1, 12):
        with closing(loader(batches_of(store))) as iterator:
            for _ in range(taken):
                next(iterator)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()


# ---- Rationales ----


@pytest.fixture(scope="module")
def llama3(shared):
    return load_tokenizer(shared / "llama3_tokenizer")


ROWS = {
    "document_id": ["a", "a", "b"],
    "preceding": ["One and one", "One and one is two. Two", "Three"],
    "rationale": ["Add them.", "Double it.", "Count on."],
    "kept": [True, True, False],
}


def write_jsonl(path: Path, columns: dict[str, list]) -> None:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_kept_rationales_become_examples(llama3, tmp_path):
    pq.write_table(pa.table(ROWS), tmp_path / "rationales.parquet")
    examples = list(read_rationales(tmp_path / "rationales.parquet", llama3, load_prompts("llama3")))
    assert [example.group for example in examples] == ["a", "a"]
    for example, preceding, rationale in zip(examples, ROWS["preceding"], ROWS["rationale"], strict=False):
        text = str(llama3.decode(list(example.tokens)))
        assert preceding in text and text.endswith(f"{rationale}<|eot_id|>")
        target = [t for t, w in zip(example.tokens, example.weights, strict=True) if w == 1]
        assert str(llama3.decode(target)).strip() == f"{rationale}<|eot_id|>"
        assert set(example.weights) == {0, 1}


def test_rationales_are_the_same_in_one_file_in_shards_and_in_json_lines(llama3, tmp_path):
    prompts = load_prompts("llama3")
    columns = {name: values * 700 for name, values in ROWS.items()}  # more than one batch of rows
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "one.parquet")
    write_jsonl(tmp_path / "lines.jsonl", columns)
    (tmp_path / "shards").mkdir()
    for shard, start in (("2", 1500), ("0", 0), ("1", 600)):
        rows = table.slice(start, {"0": 600, "1": 900, "2": 600}[shard])
        pq.write_table(rows, tmp_path / "shards" / f"part-{shard}.parquet")
    one, lines, shards = (
        list(read_rationales(tmp_path / name, llama3, prompts))
        for name in ("one.parquet", "lines.jsonl", "shards")
    )
    assert len(one) == 1400 and one == lines == shards


def test_rationales_that_were_not_filtered_are_all_kept(llama3, tmp_path):
    pq.write_table(pa.table(ROWS).drop_columns("kept"), tmp_path / "all.parquet")
    assert len(list(read_rationales(tmp_path / "all.parquet", llama3, load_prompts("llama3")))) == 3


def test_integers_identify_documents_too(llama3, tmp_path):
    write_jsonl(tmp_path / "x.jsonl", ROWS | {"document_id": ["a", 2, "c"]})
    pq.write_table(pa.table(ROWS | {"document_id": [1, 2, 3]}), tmp_path / "x.parquet")
    for name, groups in {"x.jsonl": ["a", "2"], "x.parquet": ["1", "2"]}.items():
        examples = read_rationales(tmp_path / name, llama3, load_prompts("llama3"))
        assert [example.group for example in examples] == groups


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("x.parquet", {"rationale": None}, r"no column rationale$"),
        ("x.parquet", {"kept": [False] * 3}, r"no kept rationale to train on$"),
        ("x.parquet", {"preceding": ["x", "y", None]}, r"row 3: column preceding must be text, found None$"),
        ("x.parquet", {"preceding": [1, 2, 3]}, r"row 1: column preceding must be text, found 1$"),
        ("x.parquet", {"kept": ["no"] * 3}, r"row 1: column kept must be true or false, found 'no'$"),
        ("x.parquet", {name: [] for name in ROWS}, r"no kept rationale to train on$"),
        ("x.jsonl", {"rationale": None}, r"1: no rationale$"),
        ("x.jsonl", {"document_id": ["a", True, "c"]}, r"2: document_id must be text, found True$"),
        ("x.jsonl", {"kept": [True, True, 0]}, r"3: kept must be true or false, found 0$"),
        ("x.jsonl", {name: [] for name in ROWS}, r"holds no rows$"),
    ],
)  # fmt: skip
def test_malformed_rationales_are_named_with_file_and_row(name, changed, message, llama3, tmp_path):
    columns = {key: values for key, values in (ROWS | changed).items() if values is not None}
    if name.endswith(".jsonl"):
        write_jsonl(tmp_path / name, columns)
    else:
        pq.write_table(pa.table(columns), tmp_path / name)
    with pytest.raises(ValueError, match=rf"{re.escape(name)}: ?{message}") as caught:
        list(read_rationales(tmp_path / name, llama3, load_prompts("llama3")))
    assert "\n" not in str(caught.value)


def test_a_row_is_counted_from_the_beginning_of_its_file(llama3, tmp_path):
    columns = {name: values * 700 for name, values in ROWS.items()}
    columns["preceding"] = [*columns["preceding"][:-1], None]
    pq.write_table(pa.table(ROWS), tmp_path / "0.parquet")
    pq.write_table(pa.table(columns), tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=r"1\.parquet: row 2100: column preceding"):
        list(read_rationales(tmp_path, llama3, load_prompts("llama3")))


def test_files_without_rationales_are_named(llama3, tmp_path):
    prompts = load_prompts("llama3")
    with pytest.raises(FileNotFoundError, match=r"absent\.parquet: no such file"):
        list(read_rationales(tmp_path / "absent.parquet", llama3, prompts))
    with pytest.raises(ValueError, match="no Parquet file in this folder"):
        list(read_rationales(tmp_path, llama3, prompts))
    (tmp_path / "text.parquet").write_text("plain text\n")
    with pytest.raises(ValueError, match=r"text\.parquet: not Parquet") as caught:
        list(read_rationales(tmp_path / "text.parquet", llama3, prompts))
    assert "\n" not in str(caught.value)
    (tmp_path / "text.jsonl").write_text("plain text\n")
    with pytest.raises(ValueError, match=r"text\.jsonl:1: not JSON"):
        list(read_rationales(tmp_path / "text.jsonl", llama3, prompts))


# ---- One rendering ----


def asked_of(coroutine) -> tuple:
    """The first requests that a trajectory makes."""
    calls = coroutine.send(None)
    coroutine.close()
    return tuple(request for _, request in calls)


def test_training_filter_and_inference_render_the_same_bytes(shared, llama3, tmp_path):
    """Real documents, taken as trajectories: what RATIONALYST and the scorer are sent while they solve a
    question is, id for id, what training and the filter make of the same text."""
    prompts = load_prompts("llama3")
    document = "Question: {question}\nAnswer: "
    head, between = document.split("{question}")
    lines = (shared / "rationalyst" / "rationales.jsonl").read_text().splitlines()[::5]
    real = [json.loads(line) for line in lines]
    rows = [row for row in real if row["preceeding"].startswith(head) and between in row["preceeding"]]
    assert prompts.document == document and len(rows) > 20
    role = Role(model=cast(Any, None), tokenizer=llama3)  # nothing is computed
    setting = Setting(Roles(role, role, role), prompts, ReasonConfig(), lambda *_: None)
    stop = "\n"

    preceding, trajectories = [], []
    for row in rows:
        question, steps = row["preceeding"].removeprefix(head).split(between, 1)
        steps = [Step(steps.rstrip(), "stop", (), 0)] if steps.strip() else []
        trajectories.append(Trajectory(Question("q", question), setting, steps=steps))
        preceding.append(document.replace("{question}", question) + trajectories[-1].written)
    columns = {"document_id": ["d"] * len(rows), "preceding": preceding}
    columns["rationale"] = [row["rationale"] for row in rows]
    pq.write_table(pa.table(columns), tmp_path / "rationales.parquet")
    examples = list(read_rationales(tmp_path / "rationales.parquet", llama3, prompts))

    for row, text, trajectory, example in zip(rows, preceding, trajectories, examples, strict=True):
        [asked] = asked_of(trajectory.rationalize())
        context = [t for t, w in zip(example.tokens, example.weights, strict=True) if w == 0]
        assert list(asked.context) == context == list(example.tokens[: len(context)])

        following = row["following"].strip().partition(stop)[0] + stop
        triple = Triple("d", "s", 0, 0, 0, text, row["rationale"], following)
        candidates = [
            Generation((1,), np.zeros(1), option, "stop")
            for option in (following.removesuffix(stop), "Something else.")
        ]
        pairs = filter_pairs(triple, llama3, prompts)
        for pair, rationale in zip(pairs, (None, row["rationale"]), strict=True):
            scored, _ = asked_of(trajectory.score(candidates, rationale))
            assert (scored.context, scored.continuation) == (pair.context, pair.continuation)

        without, guided = (pair.context + pair.continuation for pair in pairs)
        sent = {"rationale": example.tokens, "follow": without, "follow_guided": guided}
        for name, ids in sent.items():
            decoded = str(llama3.decode(list(ids)))
            messages = len(prompts[name].messages)
            closed = messages if name == "rationale" else messages - 1
            assert decoded.count("<|begin_of_text|>") == 1 and decoded.startswith("<|begin_of_text|>")
            assert decoded.count("<|start_header_id|>") == decoded.count("<|end_header_id|>") == messages
            assert decoded.count("<|eot_id|>") == closed
