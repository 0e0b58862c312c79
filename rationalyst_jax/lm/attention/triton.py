"""Flash attention over token trees for NVIDIA GPUs (Triton, called through jax-triton).

The same three passes and the same visits as `pallas_tpu.py`. One program computes one block of queries of one
head, or one block of keys of one key-value head; it walks the list of blocks it has to visit (`blocks.py`),
so that a block nobody sees costs nothing. Importing this module needs triton; calling it, jax-triton too.

Q, S: queries and keys of a block. X, Y below are the numbers of blocks in a row.
"""

# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import triton
import triton.language as tl
from jax import Array

from rationalyst_jax.lm.attention.blocks import visible_blocks, visits

UNSEEN = tl.constexpr(
    -1e30
)  # what stands for the score of a masked key: exp of it is 0, and it is no infinity


def block_sizes(H: int) -> tuple[int, int]:
    """Queries and keys of a block for heads of size H: the largest that no GPU's registers spill."""
    return (64, 64) if H <= 64 else (32, 32)


def warps(H: int) -> int:
    """Warps of a program for heads of size H."""
    return 8 if H <= 64 else 4


def refusal(platform: str, dtype: jnp.dtype, H: int) -> str | None:
    """Why this implementation cannot serve a call; None: it can."""
    if platform != "gpu":
        return f"the Triton kernels need an NVIDIA GPU, this is a {platform}"
    if find_spec("jax_triton") is None:
        return "jax-triton is not installed (the gpu extra)"
    if dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        return f"the Triton kernels have float32, bfloat16 and float16, not {dtype}"
    if H not in (16, 32, 64, 128):
        return f"the Triton kernels have head sizes 16, 32, 64 and 128, not {H}"
    return None


def attention(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, subtree_size_BT: Array) -> Array:
    """Tree attention; see `tree_attention`."""
    T = q_BTNH.shape[1]
    H = q_BTNH.shape[3]
    padding = -T % max(block_sizes(H))
    if padding:
        q_BTNH, k_BTKH, v_BTKH = (
            jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q_BTNH, k_BTKH, v_BTKH)
        )
        subtree_size_BT = jnp.pad(subtree_size_BT, ((0, 0), (0, padding)), constant_values=1)
    return _attention(q_BTNH, k_BTKH, v_BTKH, subtree_size_BT)[:, :T]


@jax.custom_vjp
def _attention(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, size_BT: Array) -> Array:
    return _attention_fwd(q_BTNH, k_BTKH, v_BTKH, size_BT)[0]


def _attention_fwd(q_BTNH, k_BTKH, v_BTKH, size_BT):
    B, T, N, H = q_BTNH.shape
    Q, S = block_sizes(H)
    plan = visits(visible_blocks(size_BT, Q, S))
    outputs = (_like(q_BTNH), jax.ShapeDtypeStruct((B, N, T), jnp.float32))
    out_BTNH, lse_BNT = launch(
        forward_kernel,
        (T // Q, B * N),
        (q_BTNH, k_BTKH, v_BTKH, size_BT, *plan),
        outputs,
        constants(q_BTNH, k_BTKH),
    )
    return out_BTNH, (q_BTNH, k_BTKH, v_BTKH, size_BT, out_BTNH, lse_BNT)


def _attention_bwd(saved, dout_BTNH):
    q_BTNH, k_BTKH, v_BTKH, size_BT, out_BTNH, lse_BNT = saved
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    Q, S = block_sizes(H)
    delta_BTN = jnp.sum(out_BTNH.astype(jnp.float32) * dout_BTNH.astype(jnp.float32), axis=-1)
    shared = (dout_BTNH, lse_BNT, delta_BTN.transpose(0, 2, 1))
    visible = visible_blocks(size_BT, Q, S)
    meta = constants(q_BTNH, k_BTKH)
    [dq_BTNH] = launch(
        query_gradient_kernel,
        (T // Q, B * N),
        (q_BTNH, k_BTKH, v_BTKH, size_BT, *visits(visible), *shared),
        (_like(q_BTNH),),
        meta,
    )
    dk_BTKH, dv_BTKH = launch(
        key_value_gradient_kernel,
        (T // S, B * K),
        (q_BTNH, k_BTKH, v_BTKH, size_BT, *visits(visible.swapaxes(1, 2)), *shared),
        (_like(k_BTKH), _like(v_BTKH)),
        meta,
    )
    return dq_BTNH, dk_BTKH, dv_BTKH, None


_attention.defvjp(_attention_fwd, _attention_bwd)


def constants(q_BTNH: Array, k_BTKH: Array) -> dict[str, int]:
    """What the kernels are compiled for."""
    _, T, N, H = q_BTNH.shape
    Q, S = block_sizes(H)
    return {"T": T, "N": N, "K": k_BTKH.shape[2], "H": H, "Q": Q, "S": S}


def launch(kernel, grid, arrays, outputs, meta):
    """Runs a kernel on the GPU, once per place of the grid."""
    import jax_triton

    return jax_triton.triton_call(
        *arrays,
        kernel=kernel,
        grid=grid,
        out_shape=outputs,
        num_warps=warps(arrays[0].shape[3]),
        num_stages=2,
        **meta,
    )


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


@triton.jit
def scores_and_seen(q_QH, k_SH, size_S, query_Q, key_S, H: tl.constexpr):
    """Scaled scores (float32) of a query block against a key block, and which of them are seen."""
    scores_QS = tl.dot(q_QH, tl.trans(k_SH), input_precision="ieee") * (H**-0.5)
    distance_QS = query_Q[:, None] - key_S[None, :]
    return scores_QS, (distance_QS >= 0) & (distance_QS < size_S[None, :])


@triton.jit
def places(b, place_X, head, T: tl.constexpr, heads: tl.constexpr, H: tl.constexpr):
    """Offsets `[X, H]` of one head's vectors in a `[B, T, heads, H]` array."""
    row_X = b.to(tl.int64) * T + place_X
    return (row_X[:, None] * heads + head) * H + tl.arange(0, H)[None, :]


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, size_ptr, count_ptr, block_ptr, out_ptr, lse_ptr,
    T: tl.constexpr, N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, Q: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    b = tl.program_id(1) // N
    n = tl.program_id(1) % N
    row = b * (T // Q) + i
    query_Q = i * Q + tl.arange(0, Q)
    q_QH = tl.load(q_ptr + places(b, query_Q, n, T, N, H))
    maximum_Q = tl.full([Q], UNSEEN, tl.float32)
    sum_Q = tl.zeros([Q], tl.float32)
    acc_QH = tl.zeros([Q, H], tl.float32)
    for j in range(tl.load(count_ptr + row)):
        key_S = tl.load(block_ptr + row * (T // S) + j) * S + tl.arange(0, S)
        at_SH = places(b, key_S, n // (N // K), T, K, H)
        size_S = tl.load(size_ptr + b * T + key_S)
        scores_QS, seen_QS = scores_and_seen(q_QH, tl.load(k_ptr + at_SH), size_S, query_Q, key_S, H)
        new_Q = tl.maximum(maximum_Q, tl.max(tl.where(seen_QS, scores_QS, UNSEEN), axis=1))
        weights_QS = tl.exp(tl.where(seen_QS, scores_QS - new_Q[:, None], UNSEEN))
        shrink_Q = tl.exp(maximum_Q - new_Q)
        sum_Q = sum_Q * shrink_Q + tl.sum(weights_QS, axis=1)
        v_SH = tl.load(v_ptr + at_SH)
        acc_QH = acc_QH * shrink_Q[:, None] + tl.dot(weights_QS.to(v_SH.dtype), v_SH, input_precision="ieee")
        maximum_Q = new_Q
    tl.store(out_ptr + places(b, query_Q, n, T, N, H), (acc_QH / sum_Q[:, None]).to(out_ptr.dtype.element_ty))
    tl.store(lse_ptr + tl.program_id(1) * T + query_Q, maximum_Q + tl.log(sum_Q))


@triton.jit
def query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, size_ptr, count_ptr, block_ptr, dout_ptr, lse_ptr, delta_ptr, dq_ptr,
    T: tl.constexpr, N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, Q: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    b = tl.program_id(1) // N
    n = tl.program_id(1) % N
    row = b * (T // Q) + i
    query_Q = i * Q + tl.arange(0, Q)
    at_QH = places(b, query_Q, n, T, N, H)
    q_QH = tl.load(q_ptr + at_QH)
    dout_QH = tl.load(dout_ptr + at_QH)
    lse_Q = tl.load(lse_ptr + tl.program_id(1) * T + query_Q)
    delta_Q = tl.load(delta_ptr + tl.program_id(1) * T + query_Q)
    dq_QH = tl.zeros([Q, H], tl.float32)
    for j in range(tl.load(count_ptr + row)):
        key_S = tl.load(block_ptr + row * (T // S) + j) * S + tl.arange(0, S)
        at_SH = places(b, key_S, n // (N // K), T, K, H)
        k_SH = tl.load(k_ptr + at_SH)
        v_SH = tl.load(v_ptr + at_SH)
        size_S = tl.load(size_ptr + b * T + key_S)
        scores_QS, seen_QS = scores_and_seen(q_QH, k_SH, size_S, query_Q, key_S, H)
        weights_QS = tl.exp(tl.where(seen_QS, scores_QS - lse_Q[:, None], UNSEEN))
        dweights_QS = tl.dot(dout_QH, tl.trans(v_SH), input_precision="ieee")
        dscores_QS = weights_QS * (dweights_QS - delta_Q[:, None])
        dq_QH += tl.dot(dscores_QS.to(k_SH.dtype), k_SH, input_precision="ieee") * (H**-0.5)
    tl.store(dq_ptr + at_QH, dq_QH.to(dq_ptr.dtype.element_ty))


@triton.jit
def key_value_gradient_kernel(
    q_ptr, k_ptr, v_ptr, size_ptr, count_ptr, block_ptr, dout_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    T: tl.constexpr, N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, Q: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(0)
    b = tl.program_id(1) // K
    k = tl.program_id(1) % K
    row = b * (T // S) + j
    key_S = j * S + tl.arange(0, S)
    at_SH = places(b, key_S, k, T, K, H)
    k_SH = tl.load(k_ptr + at_SH)
    v_SH = tl.load(v_ptr + at_SH)
    size_S = tl.load(size_ptr + b * T + key_S)
    dk_SH = tl.zeros([S, H], tl.float32)
    dv_SH = tl.zeros([S, H], tl.float32)
    for visit in range(tl.load(count_ptr + row) * (N // K)):  # every query block, for every head of the group
        i = tl.load(block_ptr + row * (T // Q) + visit // (N // K))
        n = k * (N // K) + visit % (N // K)  # pyright: ignore[reportOperatorIssue]
        query_Q = i * Q + tl.arange(0, Q)
        at_QH = places(b, query_Q, n, T, N, H)
        q_QH = tl.load(q_ptr + at_QH)
        dout_QH = tl.load(dout_ptr + at_QH)
        lse_Q = tl.load(lse_ptr + (b * N + n) * T + query_Q)
        delta_Q = tl.load(delta_ptr + (b * N + n) * T + query_Q)
        scores_QS, seen_QS = scores_and_seen(q_QH, k_SH, size_S, query_Q, key_S, H)
        weights_QS = tl.exp(tl.where(seen_QS, scores_QS - lse_Q[:, None], UNSEEN))
        dv_SH += tl.dot(tl.trans(weights_QS.to(dout_QH.dtype)), dout_QH, input_precision="ieee")
        dweights_QS = tl.dot(dout_QH, tl.trans(v_SH), input_precision="ieee")
        dscores_QS = weights_QS * (dweights_QS - delta_Q[:, None])
        dk_SH += tl.dot(tl.trans(dscores_QS.to(q_QH.dtype)), q_QH, input_precision="ieee") * (H**-0.5)
    tl.store(dk_ptr + at_SH, dk_SH.to(dk_ptr.dtype.element_ty))
    tl.store(dv_ptr + at_SH, dv_SH.to(dv_ptr.dtype.element_ty))
