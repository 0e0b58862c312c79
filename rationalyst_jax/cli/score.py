"""`rationalyst score`: log-likelihoods of continuations, for any pairs of texts."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from rationalyst_jax.cli.rows import write_rows
from rationalyst_jax.report.progress import track
from rationalyst_jax.report.tables import counts_table


def run(model: str, pairs: Path, out: Path, decay: float = 0.9) -> None:
    """Score pairs of texts as they are: BOS, the context, the continuation; no chat template.

    Args:
        model: Checkpoint folder ("world": the one shipped).
        pairs: JSONL of pairs: context (may be empty), continuation; other keys are passed on.
        out: JSONL file to write: each pair with tokens, logprobs (nats) and the named reductions.
        decay: Weight of a token relative to the one before it, in the decayed reductions.
    """
    from rationalyst_jax.cli.checkpoint import open_checkpoint
    from rationalyst_jax.cli.pairs import encode_pair, score_rows
    from rationalyst_jax.evaluate.question import read_rows
    from rationalyst_jax.lm.generate import Engine

    console = Console()
    checkpoint = open_checkpoint(model)
    rows = dict(read_rows(pairs))
    requests = [encode_pair(checkpoint.tokenizer, row, place) for place, row in rows.items()]
    engine = Engine(checkpoint.load(), checkpoint.tokenizer)
    total = 0.0
    with track(console, "pairs scored", len(requests)) as advance:

        def counted() -> Iterator[dict[str, Any]]:
            nonlocal total
            for row in score_rows(engine, list(rows.values()), requests, decay):
                total += row["sum"]
                advance(1)
                yield row

        write_rows(out, counted())
    tokens = sum(len(request.continuation) for request in requests)
    mean = total / tokens
    summary = {"pairs": len(requests), "tokens": tokens, "nats a token": mean, "perplexity": math.exp(-mean)}
    console.print(counts_table("scored", summary))
