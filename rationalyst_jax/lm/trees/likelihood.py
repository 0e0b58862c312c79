"""Log-likelihoods of continuations given contexts, computed on packed token trees.

The pairs of a group become one token tree; trees are packed into rows, and batches of rows go through one
jitted program. Work is dispatched batch by batch without waiting for results: while the device computes one
batch, the host fills the arrays of the next.

Natural logarithms throughout: every log-probability is in nats, float32.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rationalyst_jax.lm.devices.mesh import ROWS
from rationalyst_jax.lm.devices.sharding import row_shards
from rationalyst_jax.lm.model.llama import Llama, tree_attend
from rationalyst_jax.lm.trees.logprobs import token_logprobs
from rationalyst_jax.lm.trees.tree import Rows, TokenTree, build_trees, pack

Block = TypeVar("Block")


@dataclass(frozen=True)
class Pair:
    """A continuation to be scored after its context, both as token ids; neither may be empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.context) + len(self.continuation)


@dataclass(frozen=True)
class Work:
    """What was computed: tokens of the sequences apart, nodes of their trees, places of the rows.

    attended, targets: as `lm/model/flops.py` counts them, of the nodes.
    """

    tokens: int = 0
    nodes: int = 0
    places: int = 0
    attended: int = 0
    targets: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def filled(self) -> float:
        """The fraction of places that hold a node."""
        return self.nodes / max(1, self.places)


class Scores:
    """Log-probabilities that a device computes while the host goes on; `work` says on what."""

    def __init__(self, groups: Sequence[Sequence[Pair]], packed: "_Packed", computed: list[Array]):
        self.work = packed.work
        self._sizes = [len(group) for group in groups]
        self._batches = packed.batches
        self._computed = computed

    def result(self, working: Callable[[int], None] = lambda nodes: None) -> list[list[np.ndarray]]:
        """Of each pair of each group its continuation's log-probabilities (nats, float32, one a token).

        Waits for the device. `working` is told after each batch about how many nodes are computed.
        """
        found: dict[tuple[int, int], np.ndarray] = {}
        for number, computed_SP in enumerate(self._computed, start=1):
            jax.block_until_ready(computed_SP)
            working(self.work.nodes * number // len(self._computed))
        for strips, logprob_SP in zip(self._batches, jax.device_get(self._computed), strict=True):
            for strip, logprob_P in zip(strips, logprob_SP, strict=True):
                for pair, places in zip(strip.pairs, strip.places, strict=True):
                    found[pair] = logprob_P[np.searchsorted(strip.nodes, places)]
        return [[found[g, i] for i in range(size)] for g, size in enumerate(self._sizes)]


def score(
    model: Llama,
    groups: Sequence[Sequence[Pair]],
    *,
    row_length: int = 1024,
    rows_per_batch: int = 8,
    suppress: Sequence[int] = (),
    mesh: Mesh | None = None,
) -> Scores:
    """Per-token log-probabilities of each pair's continuation. Returns as soon as everything is dispatched.

    The pairs of one group share one token tree, so their common prefixes are computed once; the result
    equals that of separate sequences up to float rounding. Trees are packed in rows of `row_length` tokens
    and a tree longer than a row is split, which repeats the path to the split. Under a `mesh` (of one
    process) each of its row shards has a part of the rows of a batch.

    Raises ValueError for an empty context or continuation, a pair longer than a row, a group whose pairs
    begin with different tokens, and a number of rows that the row shards do not divide.
    """
    packed = _pack(groups, row_length, rows_per_batch, row_shards(mesh))
    graph, weights = nnx.split(model)
    sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec(ROWS))
    computed = []
    for strips in packed.batches:
        batch = jax.device_put(_batch(packed.rows, strips), sharding)
        computed.append(score_rows(graph, weights, batch, tuple(suppress), mesh))
    return Scores(groups, packed, computed)


def work_of(groups: Sequence[Sequence[Pair]], *, row_length: int = 1024, rows_per_batch: int = 8) -> Work:
    """What `score` computes for these groups on one device. Raises as it does."""
    return _pack(groups, row_length, rows_per_batch, 1).work


def one_ahead(begun: Iterable[Block]) -> Iterator[Block]:
    """Each block of work when the next one has been sent to the device: the host prepares one while the
    device computes the one before."""
    waiting = None
    for block in begun:
        if waiting is not None:
            yield waiting
        waiting = block
    if waiting is not None:
        yield waiting


# ---- The program ----
# B rows of a batch, T places of a row; S shards of the rows, each with P slots for the nodes that are asked
# for.


class Batch(NamedTuple):
    """Rows of packed trees, and what is asked of them: the log-probability of `target` (-1: none) at `place`.

    Places of a shard count through all its rows.
    """

    token_BT: Array
    position_BT: Array
    subtree_size_BT: Array
    place_SP: Array
    target_SP: Array


@partial(jax.jit, static_argnames=("graph", "suppress", "mesh"))
def score_rows(graph, weights, batch: Batch, suppress: tuple[int, ...], mesh: Mesh | None) -> Array:
    """Log-probabilities `[S, P]` (nats, float32) of what a batch asks for, 0 where it asks for nothing."""
    model: Llama = nnx.merge(graph, weights)
    hidden_BTD, _ = model(batch.token_BT, batch.position_BT, tree_attend(batch.subtree_size_BT, mesh))
    hidden_SPD = hidden_BTD.reshape(len(batch.place_SP), -1, hidden_BTD.shape[2])
    asked = batch.place_SP, batch.target_SP
    return token_logprobs(hidden_SPD, model.output_VD(), *asked, suppress=suppress, mesh=mesh)


# ---- From pairs to batches ----


@dataclass(frozen=True)
class _Strip:
    """Rows that one shard computes in one batch, end to end, and whose continuations stand in them.

    pairs: (group, number in the group). places: of each pair, where its continuation's tokens stand.
    """

    rows: slice
    pairs: list[tuple[int, int]]
    places: list[np.ndarray]

    @cached_property
    def nodes(self) -> np.ndarray:
        """The places that are asked for, each once however many pairs ask; one slot for each."""
        return np.unique(np.concatenate([np.zeros(0, np.int64), *self.places]))


@dataclass(frozen=True)
class _Packed:
    """The trees of all pairs in rows, and batches of strips of these rows, one strip for each shard."""

    rows: Rows
    batches: list[list[_Strip]]
    work: Work


def _pack(groups: Sequence[Sequence[Pair]], row_length: int, rows_per_batch: int, shards: int) -> _Packed:
    if rows_per_batch % shards:
        raise ValueError(f"{rows_per_batch} rows a batch cannot be divided among {shards} shards")
    trees: list[TokenTree] = []
    asking: list[list[tuple[tuple[int, int], np.ndarray]]] = []  # of each tree: pairs, their nodes
    for g, group in enumerate(groups):
        if not all(pair.context and pair.continuation for pair in group):
            raise ValueError(f"score: group {g} has a pair with an empty context or continuation")
        if not group:
            continue
        if len({pair.context[0] for pair in group}) > 1:
            raise ValueError(f"score: the pairs of group {g} do not begin with the same token")
        for tree, paths in build_trees([p.context + p.continuation for p in group], row_length):
            trees.append(tree)
            asking.append([((g, i), path[len(group[i].context) :]) for i, path in paths.items()])
    rows = pack(trees, row_length, multiple=shards)

    # Two shapes: full batches, and for what is left batches of one row a shard.
    R = len(rows.token_RT)
    full = R // rows_per_batch
    rest = (R - full * rows_per_batch) // shards
    per_strip = np.repeat([rows_per_batch // shards, 1], [full * shards, rest * shards])
    start = np.cumsum([0, *per_strip])
    strips = [_Strip(slice(a, b), [], []) for a, b in pairwise(start.tolist())]
    for r, o, of_tree in zip(rows.row, rows.offset, asking, strict=True):
        strip = strips[int(np.searchsorted(start, r, side="right")) - 1]
        for pair, nodes in of_tree:
            strip.pairs.append(pair)
            strip.places.append((r - strip.rows.start) * row_length + o + nodes)
    work = Work(
        tokens=sum(len(pair) for group in groups for pair in group),
        nodes=sum(map(len, trees)),
        places=rows.token_RT.size,
        attended=sum(int(tree.position.sum()) + len(tree) for tree in trees),
        targets=sum(len(strip.nodes) for strip in strips),
    )
    return _Packed(rows, [strips[i : i + shards] for i in range(0, len(strips), shards)], work)


def _batch(rows: Rows, strips: list[_Strip]) -> Any:
    """A `Batch` of NumPy arrays."""
    every = slice(strips[0].rows.start, strips[-1].rows.stop)
    token_BT = rows.token_RT[every]
    S = len(strips)
    P = token_BT.size // S
    token_SP = token_BT.reshape(S, P)
    distance_SP = rows.parent_distance_RT[every].reshape(S, P)
    place_SP = np.zeros((S, P), np.int32)
    target_SP = np.full((S, P), -1, np.int32)
    for s, strip in enumerate(strips):
        node = strip.nodes
        place_SP[s, : len(node)] = node - distance_SP[s, node]
        target_SP[s, : len(node)] = token_SP[s, node]
    arrays: Any = (token_BT, rows.position_RT[every], rows.subtree_size_RT[every], place_SP, target_SP)
    return Batch(*arrays)
