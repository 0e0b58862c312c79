"""Choosing the next token: noise that only the request decides, temperature, top-k and top-p.

R rows, one for each token that is sampled. V words of the vocabulary in U parts, which a CPU computes one
after the other; a part has Y blocks of W words; X = U * Y blocks in all.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array


def token_keys(seed_R: Array, candidate_R: Array, position_R: Array) -> Array:
    """The random key of each row's next token, a function of nothing but the three numbers.

    So a row is sampled alike in any batch and at any place of it. `seed` is uint32; `position` is the
    token's index in the whole sequence, context included.
    """

    def key(seed: Array, candidate: Array, position: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), candidate), position)

    return jax.vmap(key)(seed_R, candidate_R, position_R)


def least_likely(logits_RV: Array, top_k_R: Array, top_p_R: Array) -> Array:
    """The least logit, `[R, 1]`, among the `top_k` likeliest tokens (0: all), and of these the fewest of mass
    >= `top_p`.

    (Top-p: arXiv 1904.09751, section 3.1.)
    """
    V = logits_RV.shape[-1]
    sorted_RV = -jnp.sort(-logits_RV, axis=-1)
    last_R1 = jnp.where(top_k_R > 0, jnp.minimum(top_k_R, V), V)[:, None] - 1
    kept_RV = sorted_RV >= jnp.take_along_axis(sorted_RV, last_R1, axis=-1)
    sorted_RV = jnp.where(kept_RV, sorted_RV, -jnp.inf)
    mass_RV = jax.nn.softmax(sorted_RV, axis=-1)
    before_RV = jnp.cumsum(mass_RV, axis=-1) - mass_RV
    kept_RV &= (before_RV < top_p_R[:, None]).at[:, 0].set(True)
    return jnp.min(jnp.where(kept_RV, sorted_RV, jnp.inf), axis=-1, keepdims=True)


def block_size(V: int) -> int:
    """How many words a block of the vocabulary has: about the square root of all.

    A divisor of V where one is near, since filling up the last block copies all logits; else a power of two.
    """
    root = math.sqrt(V)
    near = [W for W in range(math.ceil(root / 2), math.floor(2 * root) + 1) if V % W == 0]
    return min(near, key=lambda W: max(W, V // W), default=2 ** math.ceil(math.log2(V) / 2))


def in_blocks(logits_RJ: Array, W: int) -> Array:
    """Logits of J words as `[R, Y, W]`, the last block filled up with -inf."""
    R, J = logits_RJ.shape
    return jnp.pad(logits_RJ, ((0, 0), (0, -J % W)), constant_values=-jnp.inf).reshape(R, -1, W)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Logits:
    """Logits of R rows (float32), in U parts of the vocabulary, each in Y blocks of W words.

    best, mass, tempered: of each block the largest, the logsumexp, and that at the rows' temperatures.
    """

    parts_URYW: Array
    best_RX: Array
    mass_RX: Array
    tempered_RX: Array

    def block(self, block_R: Array) -> Array:
        """A block of each row, `[R, W]`."""
        _, R, Y, _ = self.parts_URYW.shape
        return self.parts_URYW[block_R // Y, jnp.arange(R), block_R % Y]

    def whole(self) -> Array:
        """`[R, V]`, with what fills up the last block."""
        return self.parts_URYW.swapaxes(0, 1).reshape(self.parts_URYW.shape[1], -1)

    def of(self, token_R: Array) -> Array:
        """The logit of one token of each row, `[R]`."""
        W = self.parts_URYW.shape[3]
        return jnp.take_along_axis(self.block(token_R // W), token_R[:, None] % W, axis=1)[:, 0]

    def argmax(self) -> Array:
        """The likeliest token of each row, int32 `[R]`."""
        block_R = jnp.argmax(self.best_RX, axis=1)
        word_R = jnp.argmax(self.block(block_R), axis=1)
        return (block_R * self.parts_URYW.shape[3] + word_R).astype(jnp.int32)

    def draw(self, key_R: Array, temperature_R: Array, top_k_R: Array, top_p_R: Array) -> Array:
        """A token of each row, int32 `[R]`, from softmax(logits / temperature) by the Gumbel-max trick.

        In two levels, since noise is dear: a block by the mass of each, then a word of it. The largest of
        several Gumbel variables is one too, at the logarithm of their summed masses, so the distribution is
        the same, and far fewer numbers are drawn. A difference in rounding changes the token only where two
        perturbed masses are that close.

        Top-k and top-p are applied after the temperature, where a row asks for them. Tokens exactly as likely
        as the last one they keep stay too.
        """
        _, R, _, W = self.parts_URYW.shape
        keys_R2 = jax.vmap(jax.random.split)(key_R)

        def likeliest_with_noise(logits_RX: Array, key_R: Array) -> Array:
            noise_RX = jax.vmap(lambda key: jax.random.gumbel(key, logits_RX.shape[1:]))(key_R)
            return jnp.argmax(logits_RX + noise_RX, axis=1)

        def of_likeliest() -> tuple[Array, Array]:
            whole_RV = self.whole() / temperature_R[:, None]
            least_R1 = least_likely(whole_RV, top_k_R, top_p_R)
            kept_RV = jnp.where(whole_RV >= least_R1, whole_RV, -jnp.inf)
            return jax.nn.logsumexp(kept_RV.reshape(R, -1, W), axis=2), least_R1

        def of_all() -> tuple[Array, Array]:
            return self.tempered_RX, jnp.full((R, 1), -jnp.inf)

        restricted = (top_k_R > 0).any() | (top_p_R < 1).any()
        mass_RX, least_R1 = jax.lax.cond(restricted, of_likeliest, of_all)
        block_R = likeliest_with_noise(mass_RX, keys_R2[:, 0])
        words_RW = self.block(block_R) / temperature_R[:, None]
        words_RW = jnp.where(words_RW >= least_R1, words_RW, -jnp.inf)
        return (block_R * W + likeliest_with_noise(words_RW, keys_R2[:, 1])).astype(jnp.int32)
