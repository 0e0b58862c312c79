"""Flash attention over token trees for TPUs (Pallas, Mosaic): blocks nobody sees are never touched.

The softmax is accumulated block by block (arXiv 2205.14135), statistics in float32. The mask is computed
inside the kernel from `subtree_size`; which key blocks a query block visits is decided before (`blocks.py`)
and handed over as prefetched scalars: a block passed over is neither loaded nor computed. The G query heads
of a group share each load of their key-value head. The backward pass recomputes the weights from the saved
log-sum-exp: one kernel for dq, which visits keys, and one for dk and dv, which visits queries.

Q blocks of q queries, S blocks of s keys; X = G * q rows of one query block, of all its heads.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rationalyst_jax.lm.attention.blocks import Visits, visible_blocks, visits
from rationalyst_jax.lm.devices.precision import precision_of

LANES = 128
UNSEEN = -1e30  # what stands for the score of a masked key: exp of it is 0, and it is no infinity


def block_sizes(T: int, G: int) -> tuple[int, int]:
    """Queries and keys of a block for rows of T places (a multiple of 128) and groups of G query heads.

    The G * q scores against s keys have to fit in a core's memory, several times in the backward pass.
    """
    q = next(q for q in (256, 128, 64, 32, 16) if T % q == 0 and (G * q <= 1024 or q == 16))
    return q, next(s for s in (512, 256, 128) if T % s == 0)


def refusal(platform: str, dtype: jnp.dtype, H: int) -> str | None:
    """Why this implementation cannot serve a call; None: it can."""
    if platform != "tpu":
        return f"the Pallas kernels need a TPU, this is a {platform}"
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"the Pallas kernels have float32 and bfloat16, not {dtype}"
    if H not in (64, 128):
        return f"the Pallas kernels have head sizes 64 and 128, not {H}"
    return None


def attention(
    q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, subtree_size_BT: Array, *, interpret: bool = False
) -> Array:
    """Tree attention; see `tree_attention`. `interpret` runs the kernels as plain JAX on any device."""
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    padding = -T % LANES
    if padding:
        q_BTNH, k_BTKH, v_BTKH = (
            jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q_BTNH, k_BTKH, v_BTKH)
        )
        subtree_size_BT = jnp.pad(subtree_size_BT, ((0, 0), (0, padding)), constant_values=1)
    q_BKGTH = q_BTNH.reshape(B, T + padding, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKTH = k_BTKH.transpose(0, 2, 1, 3)
    v_BKTH = v_BTKH.transpose(0, 2, 1, 3)
    out_BKGTH: Array = _attention(q_BKGTH, k_BKTH, v_BKTH, subtree_size_BT, interpret)  # pyright: ignore[reportAssignmentType]
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T + padding, N, H)[:, :T]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q_BKGTH: Array, k_BKTH: Array, v_BKTH: Array, size_BT: Array, interpret: bool) -> Array:
    return _forward(q_BKGTH, k_BKTH, v_BKTH, size_BT, interpret)[0]


def _attention_fwd(q_BKGTH, k_BKTH, v_BKTH, size_BT, interpret):
    out_BKGTH, lse_BKQ1X = _forward(q_BKGTH, k_BKTH, v_BKTH, size_BT, interpret)
    return out_BKGTH, (q_BKGTH, k_BKTH, v_BKTH, size_BT, out_BKGTH, lse_BKQ1X)


def _attention_bwd(interpret, saved, dout_BKGTH):
    q_BKGTH, k_BKTH, v_BKTH, size_BT, out_BKGTH, lse_BKQ1X = saved
    B, K, G, T, _ = q_BKGTH.shape
    q, _ = block_sizes(T, G)
    delta_BKGT = jnp.sum(out_BKGTH.astype(jnp.float32) * dout_BKGTH.astype(jnp.float32), axis=-1)
    delta_BKQ1X = (
        delta_BKGT.reshape(B, K, G, T // q, q).transpose(0, 1, 3, 2, 4).reshape(B, K, T // q, 1, G * q)
    )
    gradients = (q_BKGTH, k_BKTH, v_BKTH, size_BT, dout_BKGTH, lse_BKQ1X, delta_BKQ1X, interpret)
    return _query_gradient(*gradients), *_key_value_gradient(*gradients), None


_attention.defvjp(_attention_fwd, _attention_bwd)


# ---- What the three kernels share ----


def _scores(
    q_GqH: Array, k_sH: Array, size_1s: Array, first_query: Array, first_key: Array
) -> tuple[Array, Array]:
    """Scaled scores `[X, s]` (float32) of a query block against a key block, and which of them are seen."""
    G, q, H = q_GqH.shape
    s = k_sH.shape[0]
    scores_Xs = _product(q_GqH.reshape(G * q, H), k_sH, (1, 1)) * H**-0.5
    query_qs = first_query + jax.lax.broadcasted_iota(jnp.int32, (q, s), 0)
    distance_qs = query_qs - first_key - jax.lax.broadcasted_iota(jnp.int32, (q, s), 1)
    seen_qs = (distance_qs >= 0) & (distance_qs < size_1s)
    seen_Xs = jnp.broadcast_to(seen_qs[None], (G, q, s)).reshape(G * q, s)
    return scores_Xs, seen_Xs


def _product(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """A matrix product accumulated in float32."""
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(
        a, b, dimensions, precision=precision_of(a, b), preferred_element_type=jnp.float32
    )


def _column(row_1X: Array) -> Array:
    """`[1, X]` along lanes to `[X, 1]` along sublanes."""
    return jnp.broadcast_to(row_1X, (LANES, row_1X.shape[1])).T[:, :1]


def _visiting_keys(G: int, q: int, s: int, H: int) -> tuple[pl.BlockSpec, ...]:
    """Blocks (queries, keys, subtree sizes, one number per query) of a kernel that visits keys."""
    return (
        pl.BlockSpec((None, None, G, q, H), lambda b, k, i, j, count, block: (b, k, 0, i, 0)),
        pl.BlockSpec((None, None, s, H), lambda b, k, i, j, count, block: (b, k, block[b, i, j], 0)),
        pl.BlockSpec((None, 1, s), lambda b, k, i, j, count, block: (b, 0, block[b, i, j])),
        pl.BlockSpec((None, None, None, 1, G * q), lambda b, k, i, j, count, block: (b, k, i, 0, 0)),
    )


def _query_scratch(G: int, q: int, H: int) -> list:
    """Two numbers per query, along the lanes, and a vector."""
    number = pltpu.VMEM((G * q, LANES), jnp.float32)
    return [number, number, pltpu.VMEM((G * q, H), jnp.float32)]


def _call(kernel, visits_: Visits, grid, inputs, outputs, scratch, arrays, interpret):
    """Runs a kernel on a grid whose last axis goes over the visits of the axis before it."""
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=inputs,
            out_specs=[spec for spec, _ in outputs],
            scratch_shapes=scratch,
        ),
        out_shape=[shape for _, shape in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
    )(visits_.count_BX, visits_.block_BXY, *arrays)


# ---- Forward ----


def _forward(q_BKGTH, k_BKTH, v_BKTH, size_BT, interpret) -> tuple[Array, Array]:
    """Output `[B, K, G, T, H]` and the log-sum-exp of each query's scores, float32 `[B, K, Q, 1, X]`."""
    B, K, G, T, H = q_BKGTH.shape
    q, s = block_sizes(T, G)
    plan = visits(visible_blocks(size_BT, q, s))
    query, key, size, lse = _visiting_keys(G, q, s, H)
    return _call(
        _forward_kernel,
        plan,
        (B, K, T // q, T // s),
        [query, key, key, size],
        [
            (query, jax.ShapeDtypeStruct(q_BKGTH.shape, q_BKGTH.dtype)),
            (lse, jax.ShapeDtypeStruct((B, K, T // q, 1, G * q), jnp.float32)),
        ],
        _query_scratch(G, q, H),
        (q_BKGTH, k_BKTH, v_BKTH, size_BT[:, None]),
        interpret,
    )


def _forward_kernel(
    count, block, q_ref, k_ref, v_ref, size_ref, out_ref, lse_ref, maximum_ref, sum_ref, acc_ref
):
    b = pl.program_id(0)
    i = pl.program_id(2)
    j = pl.program_id(3)
    G, q, H = q_ref.shape
    s = k_ref.shape[0]

    @pl.when(j == 0)
    def _():
        maximum_ref[...] = jnp.full_like(maximum_ref, UNSEEN)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    @pl.when(j < count[b, i])
    def _():
        scores_Xs, seen_Xs = _scores(q_ref[...], k_ref[...], size_ref[...], i * q, block[b, i, j] * s)
        old_X1 = maximum_ref[:, :1]
        new_X1 = jnp.maximum(old_X1, jnp.max(jnp.where(seen_Xs, scores_Xs, UNSEEN), axis=1, keepdims=True))
        weights_Xs = jnp.exp(jnp.where(seen_Xs, scores_Xs - new_X1, UNSEEN))
        shrink_X1 = jnp.exp(old_X1 - new_X1)
        sum_X1 = shrink_X1 * sum_ref[:, :1] + jnp.sum(weights_Xs, axis=1, keepdims=True)
        maximum_ref[...] = jnp.broadcast_to(new_X1, maximum_ref.shape)
        sum_ref[...] = jnp.broadcast_to(sum_X1, sum_ref.shape)
        values_sH = v_ref[...]
        acc_ref[...] = shrink_X1 * acc_ref[...] + _product(
            weights_Xs.astype(values_sH.dtype), values_sH, (1, 0)
        )

    @pl.when(j == pl.num_programs(3) - 1)
    def _():
        out_ref[...] = (acc_ref[...] / sum_ref[:, :1]).reshape(G, q, H).astype(out_ref.dtype)
        lse_ref[...] = (maximum_ref[...] + jnp.log(sum_ref[...])).T[:1]


# ---- Backward ----


def _query_gradient(q_BKGTH, k_BKTH, v_BKTH, size_BT, dout_BKGTH, lse_BKQ1X, delta_BKQ1X, interpret) -> Array:
    B, K, G, T, H = q_BKGTH.shape
    q, s = block_sizes(T, G)
    plan = visits(visible_blocks(size_BT, q, s))
    query, key, size, row = _visiting_keys(G, q, s, H)
    [dq_BKGTH] = _call(
        _query_gradient_kernel,
        plan,
        (B, K, T // q, T // s),
        [query, key, key, size, query, row, row],
        [(query, jax.ShapeDtypeStruct(q_BKGTH.shape, q_BKGTH.dtype))],
        _query_scratch(G, q, H),
        (q_BKGTH, k_BKTH, v_BKTH, size_BT[:, None], dout_BKGTH, lse_BKQ1X, delta_BKQ1X),
        interpret,
    )
    return dq_BKGTH


def _query_gradient_kernel(
    count,
    block,
    q_ref,
    k_ref,
    v_ref,
    size_ref,
    dout_ref,
    lse_ref,
    delta_ref,
    dq_ref,
    lse_X_ref,
    delta_X_ref,
    acc_ref,
):
    b = pl.program_id(0)
    i = pl.program_id(2)
    j = pl.program_id(3)
    G, q, H = q_ref.shape
    s = k_ref.shape[0]

    @pl.when(j == 0)
    def _():
        lse_X_ref[...] = jnp.broadcast_to(_column(lse_ref[...]), lse_X_ref.shape)
        delta_X_ref[...] = jnp.broadcast_to(_column(delta_ref[...]), delta_X_ref.shape)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    @pl.when(j < count[b, i])
    def _():
        keys_sH = k_ref[...]
        scores_Xs, seen_Xs = _scores(q_ref[...], keys_sH, size_ref[...], i * q, block[b, i, j] * s)
        weights_Xs = jnp.exp(jnp.where(seen_Xs, scores_Xs - lse_X_ref[:, :1], UNSEEN))
        dweights_Xs = _product(dout_ref[...].reshape(G * q, H), v_ref[...], (1, 1))
        dscores_Xs = weights_Xs * (dweights_Xs - delta_X_ref[:, :1])
        acc_ref[...] += _product(dscores_Xs.astype(keys_sH.dtype), keys_sH, (1, 0)) * H**-0.5

    @pl.when(j == pl.num_programs(3) - 1)
    def _():
        dq_ref[...] = acc_ref[...].reshape(G, q, H).astype(dq_ref.dtype)


def _key_value_gradient(
    q_BKGTH, k_BKTH, v_BKTH, size_BT, dout_BKGTH, lse_BKQ1X, delta_BKQ1X, interpret
) -> tuple[Array, Array]:
    B, K, G, T, H = q_BKGTH.shape
    q, s = block_sizes(T, G)
    plan = visits(visible_blocks(size_BT, q, s).swapaxes(1, 2))
    query = pl.BlockSpec((None, None, G, q, H), lambda b, k, j, i, count, block: (b, k, 0, block[b, j, i], 0))
    key = pl.BlockSpec((None, None, s, H), lambda b, k, j, i, count, block: (b, k, j, 0))
    size = pl.BlockSpec((None, 1, s), lambda b, k, j, i, count, block: (b, 0, j))
    row = pl.BlockSpec(
        (None, None, None, 1, G * q), lambda b, k, j, i, count, block: (b, k, block[b, j, i], 0, 0)
    )
    dk_BKTH, dv_BKTH = _call(
        _key_value_gradient_kernel,
        plan,
        (B, K, T // s, T // q),
        [query, key, key, size, query, row, row],
        [(key, jax.ShapeDtypeStruct(x.shape, x.dtype)) for x in (k_BKTH, v_BKTH)],
        [pltpu.VMEM((s, H), jnp.float32), pltpu.VMEM((s, H), jnp.float32)],
        (q_BKGTH, k_BKTH, v_BKTH, size_BT[:, None], dout_BKGTH, lse_BKQ1X, delta_BKQ1X),
        interpret,
    )
    return dk_BKTH, dv_BKTH


def _key_value_gradient_kernel(
    count,
    block,
    q_ref,
    k_ref,
    v_ref,
    size_ref,
    dout_ref,
    lse_ref,
    delta_ref,
    dk_ref,
    dv_ref,
    dk_acc_ref,
    dv_acc_ref,
):
    b = pl.program_id(0)
    j = pl.program_id(2)
    i = pl.program_id(3)
    G, q, H = q_ref.shape
    s = k_ref.shape[0]

    @pl.when(i == 0)
    def _():
        dk_acc_ref[...] = jnp.zeros_like(dk_acc_ref)
        dv_acc_ref[...] = jnp.zeros_like(dv_acc_ref)

    @pl.when(i < count[b, j])
    def _():
        queries_GqH = q_ref[...]
        dout_XH = dout_ref[...].reshape(G * q, H)
        scores_Xs, seen_Xs = _scores(queries_GqH, k_ref[...], size_ref[...], block[b, j, i] * q, j * s)
        weights_Xs = jnp.exp(jnp.where(seen_Xs, scores_Xs - _column(lse_ref[...]), UNSEEN))
        dv_acc_ref[...] += _product(weights_Xs.astype(dout_XH.dtype), dout_XH, (0, 0))
        dweights_Xs = _product(dout_XH, v_ref[...], (1, 1))
        dscores_Xs = weights_Xs * (dweights_Xs - _column(delta_ref[...]))
        queries_XH = queries_GqH.reshape(G * q, H)
        dk_acc_ref[...] += _product(dscores_Xs.astype(queries_XH.dtype), queries_XH, (0, 0)) * H**-0.5

    @pl.when(i == pl.num_programs(3) - 1)
    def _():
        dk_ref[...] = dk_acc_ref[...].astype(dk_ref.dtype)
        dv_ref[...] = dv_acc_ref[...].astype(dv_ref.dtype)
