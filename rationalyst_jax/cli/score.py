"""`rationalyst score`: log-likelihoods of continuations, for any pairs of texts."""

import math
from pathlib import Path

from rich.console import Console

from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.report.progress import track
from rationalyst_jax.report.tables import counts_table


def run(
    model: str, pairs: Path, out: Path, engine: EngineConfig, decay: float = 0.9, bos: str | None = None
) -> None:
    """Score pairs of texts: how likely is the continuation after the context?

    The texts are scored as they are, after a BOS and without a chat template.

    Args:
        model: Checkpoint folder, or "world" for the shipped model.
        pairs: JSONL file of pairs. Each row has context (may be empty) and continuation. Other keys are
            copied to the output.
        out: JSONL file to write: each pair with its tokens, its logprobs (nats), and their sums and means.
            Until it is whole it is called <out>.partial, and a killed run continues there.
        engine: How the model scores.
        decay: Weight of a token relative to the one before it, in decayed_sum and decayed_mean.
        bos: Token that is put before each text. By default it is what the tokenizer itself puts there, or
            else the tokenizer's BOS; but nothing where BOS opens every message of a chat, as <|im_start|>
            does in some ChatML models.
    """
    from rationalyst_jax.pipeline.models import Models
    from rationalyst_jax.pipeline.score import score

    console = Console()
    with Models(engine) as models, track(console, "pairs scored") as progress:
        found = score(pairs, model, models, out, decay=decay, bos=bos, progress=progress)
    mean = found.total / found.tokens
    rows = {
        "pairs": found.pairs,
        "tokens": found.tokens,
        "nats a token": mean,
        "perplexity": math.exp(-mean),
    }
    console.print(counts_table("scored", rows))
