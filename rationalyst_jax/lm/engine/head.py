"""The output head: log-probabilities of given tokens, sampled tokens, the likeliest ones, of hidden states.

A entries are asked, R of them at once, each of one hidden state. A CPU goes through the vocabulary in U parts
of J words, so that a core's cache holds the logits until all that has to read them has done so. A part has Y
blocks of W words, so that there are X = U * Y blocks in all (`lm/engine/sampling.py`). E token masks. C
panels of P words (`lm/cpu/products.py`).
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from rationalyst_jax.lm.cpu import products
from rationalyst_jax.lm.devices.precision import precision_of
from rationalyst_jax.lm.devices.sharding import platform_of
from rationalyst_jax.lm.engine.sampling import Logits, block_size, in_blocks, token_keys

ENTRIES_AT_ONCE = 64
LOGITS_ON_CPU = 2**19  # as many as a core's cache holds
# What a token mask says of a word, as bits: it ends a sequence; it must not be sampled.
ENDING = 1
SUPPRESSED = 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeadInputs:
    """What is asked of the places of a step; entries from `count` on are fillers.

    wants_likeliest (bool): some entry asks for the likeliest tokens. place: in the step's row of tokens.
    target: a token id, or -1 to sample one. slot: which sequence gets it; fresh: as its first. mask: a row of
    the token masks. remaining: how many tokens may still be sampled, this one included. The noise is decided
    by seed, candidate and position.
    """

    count: Any
    wants_likeliest: Any
    place_A: Any
    target_A: Any
    slot_A: Any
    fresh_A: Any
    mask_A: Any
    remaining_A: Any
    seed_A: Any
    candidate_A: Any
    position_A: Any
    temperature_A: Any
    top_p_A: Any
    top_k_A: Any

    @classmethod
    def fillers(cls, A: int) -> "HeadInputs":
        """As many fillers, on the host."""
        return cls(
            count=np.int32(0),
            wants_likeliest=np.bool_(False),
            place_A=np.zeros(A, np.int32),
            target_A=np.zeros(A, np.int32),
            slot_A=np.zeros(A, np.int32),
            fresh_A=np.zeros(A, bool),
            mask_A=np.zeros(A, np.int32),
            remaining_A=np.zeros(A, np.int32),
            seed_A=np.zeros(A, np.uint32),
            candidate_A=np.zeros(A, np.int32),
            position_A=np.zeros(A, np.int32),
            temperature_A=np.zeros(A, np.float32),
            top_p_A=np.ones(A, np.float32),
            top_k_A=np.zeros(A, np.int32),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeadOutputs:
    """Of every entry: its token (int32), the token's log-probability (float32, nats), and the Z likeliest
    tokens with theirs, best first, where the entries ask for them (else zeros).

    Log-probabilities are the model's own without suppressed words, before temperature, top-p and top-k.
    """

    token_A: Any
    logprob_A: Any
    likeliest_AZ: Any
    likeliest_logprob_AZ: Any

    @classmethod
    def zeros(cls, *shape: int, Z: int) -> "HeadOutputs":
        return cls(
            token_A=jnp.zeros(shape, jnp.int32),
            logprob_A=jnp.zeros(shape, jnp.float32),
            likeliest_AZ=jnp.zeros((*shape, Z), jnp.int32),
            likeliest_logprob_AZ=jnp.zeros((*shape, Z), jnp.float32),
        )


def apply_head(
    hidden_MD: Array,
    head_VD: Array,
    mask_EV: Array,
    inputs: HeadInputs,
    Z: int,
    mesh: Mesh | None = None,
    panels: Array | None = None,
) -> HeadOutputs:
    """What the entries ask for, R entries at a time. The head may be divided over a mesh; or a CPU has it in
    `panels`, too, `[1, C, D, P]`."""
    A = inputs.place_A.shape[0]
    R = min(A, ENTRIES_AT_ONCE)
    U = 1
    if mesh is None and platform_of(mesh) == "cpu":
        U = _parts(head_VD.shape[0], LOGITS_ON_CPU // R, 1 if panels is None else panels.shape[-1])
    padded = {
        name: jnp.pad(x, (0, -A % R), mode="edge") for name, x in vars(inputs).items() if name.endswith("_A")
    }

    def some(number: Array, outputs: HeadOutputs) -> HeadOutputs:
        asked = {name: jax.lax.dynamic_slice_in_dim(x, number * R, R) for name, x in padded.items()}
        asked = replace(inputs, count=inputs.count - number * R, **asked)
        new = _some_entries(hidden_MD[asked.place_A], head_VD, panels, mask_EV, asked, Z, U)
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=number * R, axis=0)
        return jax.tree.map(put, outputs, new)

    start = HeadOutputs.zeros(padded["place_A"].shape[0], Z=Z)
    outputs = jax.lax.fori_loop(0, -(-inputs.count // R), some, start)
    return jax.tree.map(lambda x: x[:A], outputs)


def _some_entries(
    hidden_RD: Array,
    head_VD: Array,
    panels: Array | None,
    mask_EV: Array,
    asked: HeadInputs,
    Z: int,
    U: int,
) -> HeadOutputs:
    """Of `asked`, which are A = R entries."""
    # 1. Logits, with what is needed of each block of the vocabulary.
    drawn_R = (asked.target_A < 0) & (asked.temperature_A > 0)
    temperature_R = jnp.where(drawn_R, asked.temperature_A, 1)
    logits = _logits(hidden_RD, head_VD, panels, mask_EV, asked, temperature_R, U)

    # 2. Each entry's token: the one that is given, or drawn, or the likeliest.
    best_R = logits.argmax()

    def draw() -> Array:
        key_R = token_keys(asked.seed_A, asked.candidate_A, asked.position_A)
        return logits.draw(key_R, temperature_R, asked.top_k_A, asked.top_p_A)

    token_R = jnp.where(drawn_R, jax.lax.cond(drawn_R.any(), draw, lambda: best_R), best_R)
    token_R = jnp.where(asked.target_A >= 0, asked.target_A, token_R)

    # 3. Log-probabilities: its own, and those of the likeliest tokens, where somebody asks for them.
    normalizer_R = jax.nn.logsumexp(logits.mass_RX, axis=1)
    logprob_R = logits.of(token_R) - normalizer_R
    nothing = HeadOutputs.zeros(len(token_R), Z=Z)
    best_logit_RZ = nothing.likeliest_logprob_AZ
    likeliest_RZ = nothing.likeliest_AZ
    if Z:
        best_logit_RZ, likeliest_RZ = jax.lax.cond(
            asked.wants_likeliest,
            lambda: tuple(jax.lax.top_k(logits.whole(), Z)),
            lambda: (nothing.likeliest_logprob_AZ, nothing.likeliest_AZ),
        )
    return HeadOutputs(token_R, logprob_R, likeliest_RZ, best_logit_RZ - normalizer_R[:, None])


def _logits(
    hidden_RD: Array,
    head_VD: Array,
    panels: Array | None,
    mask_EV: Array,
    asked: HeadInputs,
    temperature_R: Array,
    U: int,
) -> Logits:
    """Of R hidden states, in U parts, -inf for suppressed words."""
    V, D = head_VD.shape
    W = block_size(V)
    head_UJD = head_VD.reshape(U, V // U, D)
    mask_UEJ = mask_EV.reshape(len(mask_EV), U, V // U).swapaxes(0, 1)
    nothing_tempered = (temperature_R == 1).all()

    def part(u: Array | int) -> tuple[Array, Array, Array, Array]:
        if panels is not None:
            of_parts = panels.reshape(U, -1, *panels.shape[2:])
            (logits_RJ,) = products.multiply(hidden_RD, [of_parts], [V // U], u, asked.count)
        else:
            precision = precision_of(hidden_RD, head_VD)
            logits_RJ = jnp.einsum(
                "RD,JD->RJ", hidden_RD, head_UJD[u], precision=precision, preferred_element_type=jnp.float32
            )
        logits_RJ = jnp.where((mask_UEJ[u][asked.mask_A] & SUPPRESSED) > 0, -jnp.inf, logits_RJ)
        logits_RYW = in_blocks(logits_RJ, W)
        mass_RY = jax.nn.logsumexp(logits_RYW, axis=2)
        tempered_RY = jax.lax.cond(
            nothing_tempered,
            lambda: mass_RY,
            lambda: jax.nn.logsumexp(logits_RYW / temperature_R[:, None, None], axis=2),
        )
        return logits_RYW, logits_RYW.max(axis=2), mass_RY, tempered_RY

    if U == 1:
        parts = jax.tree.map(lambda x: x[None], part(0))
    else:
        parts = jax.lax.map(part, jnp.arange(U))
    parts_URYW, *blocks = parts
    return Logits(parts_URYW, *(x_URY.swapaxes(0, 1).reshape(len(hidden_RD), -1) for x_URY in blocks))


def _parts(V: int, most: int, unit: int) -> int:
    """Into how few equal parts, of whole blocks, whole units and at most `most` words, a vocabulary is
    divided, if it can be."""
    W = block_size(V)
    parts = range(1, V // W + 1)
    return next((U for U in parts if V % (W * U) == 0 and V // U % unit == 0 and V <= most * U), 1)
