"""The sentence encoder against sentence-transformers: the same weights, texts and vectors.

With tokenizing both sides start from texts: ours tokenizes in a worker process, the peer's tokenizer has a
thread for each core. Without it both start from token ids, and the peer's are sorted by length in batches, as
its own `encode` does. Both compute in float32. The peer may choose its batch size. Sides take turns, so that
a busy machine is as busy for both; seconds are medians, and the ratio is that of the turns.

The texts are questions with their solutions and short abstracts, each of them one window, so that the peer
truncates none. "filled" is the share of the computed places that hold a token.

Needs the folder of MiniLM's weights, and sentence-transformers, which is no dependency of the project:
install it without its own dependencies where Python finds it. Without it ours is measured alone.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}

import numpy as np
from documents import shared_data
from measure import arguments, compilations, print_json, print_table

from rationalyst_jax.files.rows import read_table
from rationalyst_jax.lm.weights.encoder import EncoderCheckpoint, open_encoder
from rationalyst_jax.mine.config import PrefilterConfig
from rationalyst_jax.mine.encode import encode, packed_rows, suitable_batch_tokens
from rationalyst_jax.mine.prefilter import TextEncoder, cutter_of

BATCHES = (16, 32, 64)  # sizes that the peer may choose from
TOLERANCE = 1e-4  # of a vector's entry
CONFIG = PrefilterConfig(normalisation="none", workers=1)

Work = Callable[[], np.ndarray]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--encoder", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--texts", type=int, default=2000, help="texts to encode")
    parser.add_argument("--runs", type=int, default=5, help="turns of each side")
    options = parser.parse_args()
    checkpoint = open_encoder(options.encoder)
    texts = short_texts(checkpoint, options.texts)
    ours = our_sides(checkpoint, texts)
    peers = peer_sides(options.encoder, texts)
    tokens = sum(len(window) for window in windows_of(checkpoint, texts))
    rows = []
    for name, our_work in ours.items():
        works = {"ours": our_work} | ({"sentence-transformers": peers[name]} if peers else {})
        vectors = {side: work() for side, work in works.items()}  # compiles, and warms up
        apart = max(float(np.abs(vectors["ours"] - found).max()) for found in vectors.values())
        if apart > TOLERANCE:
            raise SystemExit(f"{name}: the vectors differ by {apart:.1e}")
        with compilations() as compiled:
            seconds = in_turns(works, options.runs)
        if compiled:
            raise SystemExit(f"{name}: {len(compiled)} programs were compiled while time was taken")
        ratio = median(peer / own for own, peer in zip(*seconds.values(), strict=True)) if peers else None
        for side, taken in seconds.items():
            rate = len(texts) / median(taken)
            spread = f"{min(taken):.2f} to {max(taken):.2f}"
            shown = f"{ratio:.2f}" if side == "ours" and ratio else ""
            rows.append((name, side, spread, f"{rate:,.0f}", f"{tokens / median(taken):,.0f}", shown))
        rows.append(None)
        if options.json:
            rates = [len(texts) / median(taken) for taken in seconds.values()]
            peer_rate = rates[1] if peers else None
            print_json(f"encoder, {name}", "documents/s", rates[0], peer_rate, apart=apart, texts=len(texts))
    filled = tokens / computed_places(checkpoint, texts)
    headings = ("", "by", "seconds", "documents/s", "tokens/s", "ratio")
    caption = f"{os.cpu_count()} threads; ours: {filled:.0%} of the places filled"
    print_table(f"{len(texts)} texts of {tokens / len(texts):.0f} tokens", headings, rows[:-1], caption)


def short_texts(checkpoint: EncoderCheckpoint, count: int) -> list[str]:
    """Questions with solutions of GSM8K and MATH, and abstracts, in turns; each is one window."""
    shared = shared_data()
    found = [
        [f"{row['question']}\n{row['answer']}" for _, row in read_table(shared / "gsm8k" / "train.jsonl")],
        [f"{row['problem']}\n{row['solution']}" for _, row in read_table(shared / "math" / "train.jsonl")],
        [row["text"] for _, row in read_table(shared / "pile_like" / "mixed.jsonl")],
    ]
    turns = [text for of_turn in zip(*found, strict=False) for text in of_turn][: 3 * count]
    cutter = cutter_of(checkpoint, CONFIG)
    short = [text for text, windows in zip(turns, cutter(turns), strict=True) if len(windows) == 1]
    if len(short) < count:
        raise SystemExit(f"{len(short)} short texts, not {count}")
    return short[:count]


def windows_of(checkpoint: EncoderCheckpoint, texts: Sequence[str]) -> list[np.ndarray]:
    return [window.tokens for windows in cutter_of(checkpoint, CONFIG)(texts) for window in windows]


def our_sides(checkpoint: EncoderCheckpoint, texts: Sequence[str]) -> Mapping[str, Work]:
    encoder = TextEncoder(checkpoint, CONFIG)
    weights = checkpoint.load()
    windows = windows_of(checkpoint, texts)

    def with_tokenizing() -> np.ndarray:
        return np.concatenate([text.vectors_XD for text in encoder.all(texts)])

    def computed() -> np.ndarray:
        return encode(
            weights,
            windows,
            eps=checkpoint.config.layer_norm_eps,
            max_tokens=checkpoint.max_tokens,
        )()

    return {"with tokenizing": with_tokenizing, "without": computed}


def peer_sides(folder: Path, texts: Sequence[str]) -> Mapping[str, Work] | None:
    """The peer's two ways, each with the batch size that is fastest on an eighth of the texts."""
    try:
        import torch  # here, as a worker that tokenizes imports this module too
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    model = SentenceTransformer(str(folder), device="cpu")

    def with_tokenizing(part: Sequence[str], batch: int) -> np.ndarray:
        return model.encode(list(part), batch_size=batch, normalize_embeddings=True, show_progress_bar=False)

    def batches(part: Sequence[str], batch: int) -> list[tuple[list[int], Any]]:
        order = sorted(range(len(part)), key=lambda i: -len(part[i]))
        groups = [order[first : first + batch] for first in range(0, len(part), batch)]
        return [(group, model.tokenize([part[i] for i in group])) for group in groups]

    def computed(prepared: Sequence[tuple[list[int], Any]]) -> np.ndarray:
        found = {}
        with torch.no_grad():
            for group, features in prepared:
                vectors = model.forward(dict(features))["sentence_embedding"]
                found |= dict(zip(group, torch.nn.functional.normalize(vectors, dim=1).numpy(), strict=True))
        return np.stack([found[i] for i in range(len(found))])

    part = texts[: max(1, len(texts) // 8)]

    def seconds(batch: int) -> float:
        start = perf_counter()
        with_tokenizing(part, batch)
        return perf_counter() - start

    with_tokenizing(part, BATCHES[0])
    best = min(BATCHES, key=seconds)
    prepared = batches(texts, best)
    return {
        "with tokenizing": lambda: with_tokenizing(texts, best),
        "without": lambda: computed(prepared),
    }


def in_turns(works: Mapping[str, Work], runs: int) -> dict[str, list[float]]:
    """The seconds of each side, one turn after the other."""
    seconds: dict[str, list[float]] = {side: [] for side in works}
    for _ in range(runs):
        for side, work in works.items():
            start = perf_counter()
            work()
            seconds[side].append(perf_counter() - start)
    return seconds


def computed_places(checkpoint: EncoderCheckpoint, texts: Sequence[str]) -> int:
    """How many places of rows are computed for the texts, a block at a time."""
    sizes = [len(window) for window in windows_of(checkpoint, texts)]
    blocks = [sizes[first : first + CONFIG.block] for first in range(0, len(sizes), CONFIG.block)]
    places = 0
    for block in blocks:
        for T, rows in packed_rows(np.array(block), checkpoint.max_tokens):
            B = max(1, suitable_batch_tokens() // T)
            places += -(-len(rows) // B) * B * T
    return places


if __name__ == "__main__":
    main()
