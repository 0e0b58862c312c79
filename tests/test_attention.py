"""Every implementation of tree attention against float64 sums over walked ancestors."""

import itertools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st

from rationalyst_jax.lm.attention import (
    IMPLEMENTATIONS,
    _choose,
    blocks,
    cpu,
    pallas_tpu,
    tree_attention,
    xla,
)
from rationalyst_jax.lm.devices.sharding import make_mesh
from rationalyst_jax.lm.trees.tree import build_tree, pack

Attention = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def parents(size_T: np.ndarray) -> np.ndarray:
    """Each node's parent, itself for a root: the nearest earlier node whose subtree holds it."""
    parent_T = np.arange(len(size_T))
    for i in range(len(size_T)):
        parent_T[i] = next((j for j in range(i - 1, -1, -1) if i < j + size_T[j]), i)
    return parent_T


def exact(q, k, v, size_BT, dout) -> dict[str, np.ndarray]:
    """Outputs and gradients in float64, one head and one node at a time, along each node's ancestors."""
    B, T, N, H = q.shape
    K = k.shape[2]
    named = (("out", q), ("dq", q), ("dk", k), ("dv", v))
    found: dict[str, np.ndarray] = {name: np.zeros(x.shape) for name, x in named}
    for b in range(B):
        parent_T = parents(size_BT[b])
        for i in range(T):
            path = [i]
            while parent_T[path[-1]] != path[-1]:
                path.append(parent_T[path[-1]])
            for n in range(N):
                head = n // (N // K)
                keys, values = k[b, path, head], v[b, path, head]
                scores = keys @ q[b, i, n] / np.sqrt(H)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                dweights = values @ dout[b, i, n]
                dscores = weights * (dweights - weights @ dweights) / np.sqrt(H)
                found["out"][b, i, n] = weights @ values
                found["dq"][b, i, n] = dscores @ keys
                np.add.at(found["dk"], (b, path, head), np.outer(dscores, q[b, i, n]))
                np.add.at(found["dv"], (b, path, head), np.outer(weights, dout[b, i, n]))
    return found


@pytest.fixture(scope="module")
def triton_attention() -> Attention:
    """The Triton kernels, run by Triton's interpreter on the CPU."""
    version = pytest.importorskip("triton", reason="the gpu extra is not part of the test extra").__version__
    if version.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.5.0":
        pytest.skip("Triton 3.6's interpreter takes arrays of one number for numbers, NumPy 2.5 does not")
    torch = pytest.importorskip("torch")
    from rationalyst_jax.lm.attention import triton

    def launch(kernel, grid, arrays, outputs, meta):
        def run(*arrays):
            inputs = [torch.from_numpy(np.array(array)) for array in arrays]
            made = [torch.empty(o.shape, dtype=getattr(torch, str(o.dtype))) for o in outputs]
            kernel[grid](*inputs, *made, **meta)
            return tuple(one.numpy() for one in made)

        return jax.pure_callback(run, tuple(outputs), *arrays)

    triton.launch = launch
    return triton.attention


# chains, stars, deep and wide trees, single nodes, many trees a row, an empty tail
leaves = st.lists(st.integers(0, 2), max_size=40)
forests = st.lists(st.lists(leaves, min_size=1, max_size=6), min_size=1, max_size=4)
FORESTS = {
    "chain": [[1] * 299],
    "star": [[i] for i in range(150)],
    "comb": [[0] * i + [1] for i in range(60)],
    "singles": [[]],
    "deep and wide": [[0] * 100 + [i] * 30 for i in range(1, 6)],
}


def rows_of(*trees: list[list[int]], length: int = 300) -> np.ndarray:
    """Subtree sizes `[B, length]` of trees given by the tails of their sequences."""
    return pack([build_tree([[9, *tail] for tail in tails])[0] for tails in trees], length).subtree_size_RT


@partial(jax.jit, static_argnames="attention")
def outputs_and_gradients(attention: Attention, q, k, v, dout, size_BT) -> tuple[jax.Array, ...]:
    out, vjp = jax.vjp(lambda q, k, v: attention(q, k, v, size_BT), q, k, v)
    return out, *vjp(dout)


def check(attention: Attention, size_BT: np.ndarray, N: int, K: int, H: int, dtype: str = "float32") -> None:
    rng = np.random.default_rng(0)
    B, T = size_BT.shape
    q, dout = rng.normal(size=(2, B, T, N, H))
    k, v = rng.normal(size=(2, B, T, K, H))
    q, k, v, dout = (np.asarray(jnp.asarray(x, dtype), np.float64) for x in (q, k, v, dout))
    made = outputs_and_gradients(attention, *(jnp.asarray(x, dtype) for x in (q, k, v, dout)), size_BT)
    got: dict[str, jax.Array] = {name: x for name, x in zip(("out", "dq", "dk", "dv"), made, strict=True)}
    for name, value in exact(q, k, v, size_BT, dout).items():
        # Where nobody has an ancestor, dq and dk are exactly 0: compare with what they would otherwise be.
        error = np.abs(np.asarray(got[name], np.float64) - value).max() / max(1.0, np.abs(value).max())
        assert error <= (2e-5 if dtype == "float32" else 1e-2), name


def pallas(q, k, v, size):
    return pallas_tpu.attention(q, k, v, size, interpret=True)


PLAIN = {
    "xla, dense": jax.jit(xla.dense),
    "xla, blocks": jax.jit(xla.blockwise),
    "pallas_tpu": jax.jit(pallas),
}


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=5)
@given(forests)
def test_random_forests(name, forest):
    check(PLAIN[name], rows_of(*forest), N=2, K=1, H=8)


@pytest.mark.parametrize("forest", FORESTS)
@pytest.mark.parametrize("name", PLAIN)
def test_forests_of_every_kind(name, forest):
    check(PLAIN[name], rows_of(*[FORESTS[forest]] * 2), N=2, K=1, H=16)


HEADS = [(4, 2, 64), (3, 1, 128)]


@needs_compiler
@settings(max_examples=20)
@given(forests)
def test_the_cpu_kernel_on_random_forests(forest):
    check(jax.jit(cpu.attention), rows_of(*forest), N=3, K=1, H=64)


@needs_compiler
@pytest.mark.parametrize("forest", FORESTS)
@pytest.mark.parametrize(("N", "K", "H"), [*HEADS, (1, 1, 64), (16, 1, 64)])
def test_the_cpu_kernel_on_forests_of_every_kind(forest, N, K, H):
    check(jax.jit(cpu.attention), rows_of(*[FORESTS[forest]] * 2, length=331), N, K, H)


@needs_compiler
def test_the_cpu_kernel_hides_no_nan():
    """Of a key in the first tree, from the node that sees it on; the tree after it fills tiles of its own."""
    size_BT = rows_of([[0] * 127], [[0] * 127], length=256)
    x = np.ones((1, 256, 1, 64), np.float32)
    keys = x.copy()
    keys[:, 30] = np.nan
    out, *gradients = outputs_and_gradients(cpu.attention, x, keys, x, x, size_BT)
    assert np.isnan(out).any(axis=(0, 2, 3)).tolist() == [False] * 30 + [True] * 98 + [False] * 128
    for gradient in gradients:
        assert np.isnan(gradient[:, :128]).any() and not np.isnan(gradient[:, 128:]).any()


@needs_compiler
def test_sizes_that_reach_past_the_row_or_are_none_count_as_the_nearest_that_can_be():
    given = np.arange(64, 0, -1, dtype=np.int32)[None] + 2
    given[0, 40] = 0
    nearest = np.minimum(given - 2, np.arange(64, 0, -1))
    nearest[0, 40] = 1
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 1, 64)), jnp.float32)
    made = outputs_and_gradients(cpu.attention, x, x, x, x, given)
    for one, other in zip(made, outputs_and_gradients(cpu.attention, x, x, x, x, nearest), strict=True):
        assert np.array_equal(one, other)


@needs_compiler
def test_what_the_cpu_kernel_does_not_take_is_for_xla(monkeypatch):
    assert _choose(None, "cpu", jnp.dtype("float32"), 64) is cpu
    assert _choose(None, "cpu", jnp.dtype("float32"), 32) is xla
    x = jnp.zeros((1, 2, 1, 64))
    size = jnp.ones((1, 2), jnp.int32)

    def refused(x):
        with pytest.raises(ValueError) as error:
            tree_attention(x, x, x, size, implementation="cpu")
        tree_attention(x, x, x, size)
        return str(error.value).removeprefix("tree_attention: cpu cannot serve this call: ")

    assert refused(x.astype(jnp.bfloat16)) == "it computes in float32, not in bfloat16"
    assert refused(x[..., :32]) == "heads of 32 are no multiple of 64"
    monkeypatch.setattr(cpu, "kernel", lambda *_: None)
    assert refused(x) == "there is no kernel for this processor"
    assert cpu.refusal("tpu", x.dtype, 64) == "it is for CPUs"


@pytest.mark.parametrize(("N", "K", "H"), HEADS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    # float16 is for GPUs without bfloat16; TPUs have no use for it
    [
        *itertools.product(PLAIN, ["float32", "bfloat16"]),
        ("xla, dense", "float16"),
        ("xla, blocks", "float16"),
    ],
)
def test_grouped_heads_of_every_size_and_dtype(name, N, K, H, dtype):
    check(PLAIN[name], rows_of(FORESTS["deep and wide"], FORESTS["comb"][:20]), N, K, H, dtype)


@pytest.mark.parametrize("forest", FORESTS)
def test_triton_on_forests_of_every_kind(triton_attention, forest):
    check(triton_attention, rows_of(*[FORESTS[forest]] * 2), N=2, K=1, H=16)


@pytest.mark.parametrize(("N", "K", "H"), HEADS)
# float16: the interpreter multiplies the bits of a bfloat16 as if they were whole numbers
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_triton_on_grouped_heads(triton_attention, N, K, H, dtype):
    check(triton_attention, rows_of(FORESTS["deep and wide"], FORESTS["comb"][:20]), N, K, H, dtype)


BLOCKS = {
    "xla": (xla.BLOCK, xla.BLOCK),
    "pallas_tpu": pallas_tpu.block_sizes(512, 4),
    "pallas_tpu, large groups": pallas_tpu.block_sizes(512, 16),
    "triton, H 64": (64, 64),
    "triton, H 128": (32, 32),
}


@pytest.mark.parametrize("name", BLOCKS)
@settings(max_examples=5)
@given(forests)
def test_blocks_are_visited_where_somebody_sees_something_or_the_bound_says_so(name, forest):
    """The plan visits every block in which a query sees a key, and as many as the rule of `blocks` counts."""
    query_block, key_block = BLOCKS[name]
    size_BT = rows_of(*forest, length=512)
    visible = np.asarray(blocks.visible_blocks(jnp.asarray(size_BT), query_block, key_block))
    plan = jax.tree.map(np.asarray, blocks.visits(jnp.asarray(visible)))
    seen_BTT = np.asarray(xla.tree_mask(jnp.asarray(size_BT)))
    for b, i, s in np.ndindex(*visible.shape):
        keys = range(key_block * s, key_block * (s + 1))
        first = query_block * i
        last = query_block * (i + 1) - 1
        reached = max(j + size_BT[b, j] for j in keys) > first and keys[0] <= last
        assert visible[b, i, s] == reached
        assert reached or not seen_BTT[b, first : last + 1, keys[0] : keys[-1] + 1].any()
        assert (s in plan.block_BXY[b, i, : plan.count_BX[b, i]]) == reached
    assert plan.count_BX.sum() == visible.sum()


def check_that_blocks_passed_over_are_not_read(attention: Attention) -> None:
    """What stands in a block nobody sees may be NaN: a block that is loaded would spread it (0 · NaN)."""
    size_BT = rows_of([[0] * 511], [[0] * 511], length=1024)  # two trees of 512 places in one row
    assert size_BT.shape == (1, 1024)
    x = np.ones((1, 1024, 1, 64), np.float32)
    poisoned = x.copy()
    poisoned[:, :512] = np.nan
    out = attention(jnp.asarray(x), jnp.asarray(poisoned), jnp.asarray(poisoned), jnp.asarray(size_BT))
    assert np.isnan(out[:, :512]).all() and not np.isnan(out[:, 512:]).any()


@pytest.mark.parametrize("name", ["xla, blocks", "pallas_tpu"])
def test_blocks_passed_over_are_not_even_read(name):
    check_that_blocks_passed_over_are_not_read(PLAIN[name])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, under the interpreter, tells of every NaN
def test_triton_does_not_read_blocks_passed_over(triton_attention):
    check_that_blocks_passed_over_are_not_read(triton_attention)


@pytest.mark.parametrize(("length", "H"), [(300, 8), (700, 8), (300, 64)])  # dense, by blocks, the CPU's
def test_rows_and_heads_divided_among_devices_give_the_same(length, H):
    mesh = make_mesh(1, 2, 4, jax.devices()[:8])
    size_BT = rows_of(*[FORESTS["deep and wide"]] * 4, length=length)[:2]
    check(jax.jit(partial(tree_attention, mesh=mesh)), np.repeat(size_BT, 2, axis=0), N=8, K=4, H=H)


def test_naming_what_cannot_serve_is_refused_with_the_reason():
    x = jnp.zeros((1, 2, 1, 8))
    size = jnp.ones((1, 2), jnp.int32)
    for name, reason in {
        "fast": "no implementation 'fast', only xla",
        "pallas_tpu": "pallas_tpu cannot serve this call: the Pallas kernels need a TPU, this is a cpu",
        "cudnn": "cudnn cannot serve this call: cuDNN needs an NVIDIA GPU",
        "triton": "triton cannot serve this call: ",
    }.items():
        with pytest.raises(ValueError, match=reason):
            tree_attention(x, x, x, size, implementation=name)
    assert "head sizes 64 and 128, not 8" in str(pallas_tpu.refusal("tpu", x.dtype, 8))
    with pytest.raises(ValueError, match="1 key-value heads cannot be divided among 2 devices"):
        tree_attention(x, x, x, size, mesh=make_mesh(1, 1, 2, jax.devices()[:2]))
    assert set(IMPLEMENTATIONS) == {"xla", "cpu", "pallas_tpu", "triton", "cudnn"}


@pytest.mark.parametrize("name", [None, "xla", "cpu"])
def test_arrays_that_do_not_fit_together_are_refused(name):
    q, k, size = jnp.zeros((2, 4, 6, 64)), jnp.zeros((2, 4, 3, 64)), jnp.ones((2, 4), jnp.int32)
    others = {
        "do not fit together": [
            (q[:, :, :5], k, k, size),  # five heads for three
            (q, k[:, :3], k[:, :3], size),
            (q, k, k[:, :, :2], size),
            (q, k[..., :32], k[..., :32], size),
            (q, k[:1], k[:1], size),
            (q, k[:, :, :0], k[:, :, :0], size),
            (q, k, k, size[:1]),
            (q, k, k, size[0]),
        ],
        "need one dtype": [(q, k, k.astype(jnp.bfloat16), size), (q, k, k, size.astype(jnp.float32))],
    }
    for reason, inputs in others.items():
        for arrays in inputs:
            with pytest.raises(ValueError, match=reason):
                tree_attention(*arrays, implementation=name)
