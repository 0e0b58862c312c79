"""What is asked of hidden states: log-probabilities of given tokens, sampled tokens, the likeliest ones.

A entries, C of them at once, each at a hidden state. V words in B blocks of S (`lm/engine/sampling.py`); a
CPU goes through the vocabulary in parts, so that a core's cache holds the logits until all that has to read
them has done so.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from rationalyst_jax.lm.devices.precision import precision_of
from rationalyst_jax.lm.devices.sharding import platform_of
from rationalyst_jax.lm.engine.sampling import Logits, block_size, in_blocks, token_keys

ENTRIES_AT_ONCE = 64
WORDS_ON_CPU = 8192
ENDING, SUPPRESSED = 1, 2  # what a kind of entry says of a word, as bits


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Entries:
    """What is asked of the places of a step; entries from `count` on are fillers.

    place: in the row. target: a token id, or -1 to sample one. slot: which sequence gets it; fresh: as its
    first. kind: row of the table of words that end a sequence or must not be sampled. left: how many tokens
    may still be sampled, this one included. The noise is decided by seed, candidate and position.
    likeliest (bool): somebody asks for the likeliest tokens.
    """

    count: Any
    likeliest: Any
    place_A: Any
    target_A: Any
    slot_A: Any
    fresh_A: Any
    kind_A: Any
    left_A: Any
    seed_A: Any
    candidate_A: Any
    position_A: Any
    temperature_A: Any
    top_p_A: Any
    top_k_A: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Answers:
    """Of every entry: its token (int32), the token's log-probability (float32, nats), and the Z likeliest
    tokens with theirs, best first, where the entries ask for them (else zeros).

    Log-probabilities are the model's own without suppressed words, before temperature, top-p and top-k.
    """

    token_A: Any
    logprob_A: Any
    likeliest_AZ: Any
    likeliest_logprob_AZ: Any

    @classmethod
    def none(cls, *shape: int, Z: int) -> "Answers":
        entries = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
        return cls(*entries, jnp.zeros((*shape, Z), jnp.int32), jnp.zeros((*shape, Z), jnp.float32))


def answer(
    hidden_MD: Array, head_VD: Array, kinds_EV: Array, entries: Entries, Z: int, mesh: Mesh | None = None
) -> Answers:
    """What the entries ask for, some entries at a time. The head may be divided over a mesh."""
    parts = _parts(head_VD.shape[0]) if mesh is None and platform_of(mesh) == "cpu" else 1
    A = entries.place_A.shape[0]
    C = min(A, ENTRIES_AT_ONCE)
    fields = {name: x for name, x in vars(entries).items() if name.endswith("_A")}
    fields = {name: jnp.pad(x, (0, -A % C), mode="edge") for name, x in fields.items()}

    def some(number: Array, answers: Answers) -> Answers:
        e = {name[:-2]: jax.lax.dynamic_slice_in_dim(x, number * C, C) for name, x in fields.items()}
        new = _answers(hidden_MD[e["place"]], head_VD, kinds_EV, e, entries.likeliest, Z, parts)
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=number * C, axis=0)
        return jax.tree.map(put, answers, new)

    start = Answers.none(fields["place_A"].shape[0], Z=Z)
    answers = jax.lax.fori_loop(0, -(-entries.count // C), some, start)
    return jax.tree.map(lambda x: x[:A], answers)


def _answers(
    hidden_CD: Array, head_VD: Array, kinds_EV: Array, e: dict[str, Array], wanted: Array, Z: int, T: int
) -> Answers:
    """Of C entries; `e` has their fields, `wanted` says whether the Z likeliest are."""
    asked_C = (e["target"] < 0) & (e["temperature"] > 0)
    temperature_C = jnp.where(asked_C, e["temperature"], 1)
    logits = _logits(hidden_CD, head_VD, kinds_EV, e["kind"], temperature_C, T)
    best_C = logits.argmax()

    def drawn() -> Array:
        key_C = token_keys(e["seed"], e["candidate"], e["position"])
        return logits.draw(key_C, temperature_C, e["top_k"], e["top_p"])

    token_C = jnp.where(asked_C, jax.lax.cond(asked_C.any(), drawn, lambda: best_C), best_C)
    token_C = jnp.where(e["target"] >= 0, e["target"], token_C)
    normalizer_C = jax.nn.logsumexp(logits.mass_RX, axis=1)
    none = Answers.none(len(asked_C), Z=Z)
    best_CZ, likeliest_CZ = none.likeliest_logprob_AZ, none.likeliest_AZ
    if Z:
        nothing = best_CZ, likeliest_CZ
        best_CZ, likeliest_CZ = jax.lax.cond(
            wanted, lambda: tuple(jax.lax.top_k(logits.whole(), Z)), lambda: nothing
        )
    chosen_C = logits.of(token_C) - normalizer_C
    return Answers(token_C, chosen_C, likeliest_CZ, best_CZ - normalizer_C[:, None])


def _logits(
    hidden_CD: Array, head_VD: Array, kinds_EV: Array, kind_C: Array, temperature_C: Array, T: int
) -> Logits:
    """Of C hidden states, in T parts, -inf for suppressed words."""
    V, D = head_VD.shape
    S = block_size(V)
    plain = (temperature_C == 1).all()

    def part(words: tuple[Array, Array]) -> tuple[Array, Array, Array, Array]:
        head_WD, kinds_EW = words
        precision = precision_of(hidden_CD, head_WD)
        logits_CW = jnp.einsum(
            "CD,WD->CW", hidden_CD, head_WD, precision=precision, preferred_element_type=jnp.float32
        )
        logits_CW = jnp.where((kinds_EW[kind_C] & SUPPRESSED) > 0, -jnp.inf, logits_CW)
        logits_CBS = in_blocks(logits_CW, S)
        mass_CB = jax.nn.logsumexp(logits_CBS, axis=2)
        heated_CB = jax.lax.cond(
            plain,
            lambda: mass_CB,
            lambda: jax.nn.logsumexp(logits_CBS / temperature_C[:, None, None], axis=2),
        )
        return logits_CBS, logits_CBS.max(axis=2), mass_CB, heated_CB

    if T == 1:
        parts = jax.tree.map(lambda x: x[None], part((head_VD, kinds_EV)))
    else:
        kinds_TEW = kinds_EV.reshape(len(kinds_EV), T, V // T).swapaxes(0, 1)
        parts = jax.lax.map(part, (head_VD.reshape(T, V // T, D), kinds_TEW))
    parts_TCBS, *blocks = parts
    return Logits(parts_TCBS, *(x_TCB.swapaxes(0, 1).reshape(len(hidden_CD), -1) for x_TCB in blocks))


def _parts(V: int) -> int:
    """Into how many equal parts, of whole blocks, a vocabulary is divided."""
    S = block_size(V)
    if V % S:
        return 1
    return next(T for T in range(1, V // S + 1) if V % (S * T) == 0 and V <= WORDS_ON_CPU * T)
