"""Windows of texts become unit vectors: packed many to a row, in two lengths of rows.

So there are two programs, whatever the lengths of the texts: attention over a row costs its length squared,
and most texts of the web, and most questions, are short.

B rows of a batch, T tokens of a row, P texts of a row, D width of the encoder, X windows.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from jax import Array

from rationalyst_jax.lm.model.encoder import Encoder, text_vectors
from rationalyst_jax.lm.trees.tree import best_fit

_LEAST = 4  # places that a text takes at least: a row holds so many fewer texts than tokens


def encode(
    encoder: Encoder,
    windows: Sequence[np.ndarray],
    *,
    eps: float,
    max_tokens: int,
    batch_tokens: int | None = None,
) -> Callable[[], np.ndarray]:
    """Sends windows to the device. What it returns waits for their vectors, float32 `[X, D]`.

    windows: tokens, int32, at most `max_tokens` of each. eps: of the encoder's norms. batch_tokens: places
    that are computed at once, as near as rows come to it; None: as many as suit the device.
    """
    sizes = np.maximum([len(window) for window in windows], _LEAST)
    pending: list[tuple[np.ndarray, np.ndarray, Array]] = []
    for T, rows in packed_rows(sizes, max_tokens):
        B = max(1, (batch_tokens or suitable_batch_tokens()) // T)
        for first in range(0, len(rows), B):
            batch = rows[first : first + B]
            arrays = _arrays([[windows[i] for i in row] for row in batch], B, T)
            vectors_BPD = _vectors(encoder, *arrays, eps=eps)
            most = max(map(len, batch))  # most rows have few texts: the others' places need not be copied
            vectors_BPD = vectors_BPD[:, : 1 << (most - 1).bit_length()]
            members = np.array([i for row in batch for i in row])
            places = np.array(
                [b * vectors_BPD.shape[1] + p for b, row in enumerate(batch) for p in range(len(row))]
            )
            pending.append((members, places, vectors_BPD))

    def result() -> np.ndarray:
        found_XD = np.zeros((len(windows), encoder.embed_VD.shape[1]), np.float32)
        copied = jax.device_get([vectors_BPD for *_, vectors_BPD in pending])  # starts all copies at once
        for (members, places, _), vectors_BPD in zip(pending, copied, strict=True):
            found_XD[members] = vectors_BPD.reshape(-1, found_XD.shape[1])[places]
        return found_XD

    return result


def suitable_batch_tokens() -> int:
    """Places that are computed at once. A CPU is fastest where its caches hold what they take."""
    return 1024 if jax.default_backend() == "cpu" else 16384


def packed_rows(sizes: np.ndarray, longest: int) -> list[tuple[int, list[list[int]]]]:
    """Texts of so many tokens, best fit: for rows of `longest` places, and for rows of half of them, the
    members of each row.

    A long row whose members would all fit in short ones is not kept: they are packed in those.
    """
    lengths = (longest, -(-longest // 2))
    found = []
    left = np.arange(len(sizes))
    for T, shorter in zip(lengths, (*lengths[1:], 0), strict=True):
        row, offset, count = best_fit(sizes[left].tolist(), T)
        largest = np.zeros(count, int)
        np.maximum.at(largest, row, sizes[left])
        rows: list[list[int]] = [[] for _ in range(count)]
        for i in np.argsort(offset, kind="stable"):
            rows[row[i]].append(int(left[i]))
        found.append((T, [members for r, members in enumerate(rows) if largest[r] > shorter]))
        left = np.sort([i for r, members in enumerate(rows) if largest[r] <= shorter for i in members])
        left = left.astype(int)
    return found


def _arrays(
    rows: Sequence[Sequence[np.ndarray]], B: int, T: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions and numbers of texts, int32 `[B, T]`; rows that are missing are empty."""
    token_BT, position_BT = np.zeros((2, B, T), np.int32)
    text_BT = np.full((B, T), -1, np.int32)
    for b, row in enumerate(rows):
        end = 0
        for p, window in enumerate(row):
            here = slice(end, end + len(window))
            token_BT[b, here] = window
            position_BT[b, here] = np.arange(len(window))
            text_BT[b, here] = p
            end += len(window)
    return token_BT, position_BT, text_BT


@partial(jax.jit, static_argnames="eps")
def _vectors(encoder: Encoder, token_BT: Array, position_BT: Array, text_BT: Array, *, eps: float) -> Array:
    hidden_BTD = encoder(token_BT, position_BT, text_BT, eps)
    return text_vectors(hidden_BTD, text_BT, texts=-(-text_BT.shape[1] // _LEAST))
