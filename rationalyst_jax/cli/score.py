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
    """Score pairs of texts as they are: BOS, the context, the continuation; no chat template.

    Args:
        model: Checkpoint folder ("world": the one shipped).
        pairs: JSONL of pairs: context (may be empty), continuation; other keys are passed on.
        out: JSONL file to write: each pair with tokens, logprobs (nats) and the named reductions. Until it is
            whole it is called <out>.partial, and a killed run continues there.
        engine: How the model scores.
        decay: Weight of a token relative to the one before it, in the decayed reductions.
        bos: The token put before each text. By default what the tokenizer itself puts there, or else its BOS;
            nothing where that opens every message of a chat (as <|im_start|> does in some ChatML models).
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
