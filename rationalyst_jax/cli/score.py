"""`rationalyst score`: log-likelihoods of continuations, for any pairs of texts."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.report.progress import track
from rationalyst_jax.report.tables import counts_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rationalyst_jax.lm.engine.requests import ScoreRequest

BLOCK = 256  # pairs scored, and written, at once


def run(
    model: str, pairs: Path, out: Path, engine: EngineConfig, decay: float = 0.9, bos: str | None = None
) -> None:
    """Score pairs of texts as they are: BOS, the context, the continuation; no chat template.

    Args:
        model: Checkpoint folder ("world": the one shipped).
        pairs: JSONL of pairs: context (may be empty), continuation; other keys are passed on.
        out: JSONL file to write: each pair with tokens, logprobs (nats) and the named reductions. Until it is
            whole it is called <out>.unfinished, and a killed run continues there.
        engine: How the model scores.
        decay: Weight of a token relative to the one before it, in the decayed reductions.
        bos: The token put before each text. By default what the tokenizer itself puts there, or else its BOS;
            nothing where that opens every message of a chat (as <|im_start|> does in some ChatML models).
    """
    from rationalyst_jax.files.rows import append_rows, read_rows, resume_rows
    from rationalyst_jax.files.settings import claim, file_digest
    from rationalyst_jax.lm.engine.open import open_engines
    from rationalyst_jax.lm.weights.open import open_checkpoint
    from rationalyst_jax.lm.weights.tokenizer import single_tokens
    from rationalyst_jax.prompts.prompt import opening_ids
    from rationalyst_jax.world.checkpoint import checkpoint_path

    console = Console()
    checkpoint = open_checkpoint(checkpoint_path(model))
    rows = list(read_rows(pairs))
    tokenizer = checkpoint.tokenizer
    before = opening_ids(tokenizer) if bos is None else single_tokens(tokenizer, [bos], "bos")
    requests = [_encode(tokenizer, row, place, before) for place, row in rows]
    unfinished, settings = (out.with_name(f"{out.name}.{end}") for end in ("unfinished", "config.json"))
    asked = {
        "model": engine.weights(checkpoint.fingerprint),
        "pairs": file_digest(pairs),
        "decay": decay,
        "bos": before,
    }
    claim(settings, asked, unfinished)
    done = resume_rows(unfinished, BLOCK, len(rows))
    [scorer] = open_engines([checkpoint], engine)
    with track(console, "pairs scored", len(rows)) as advance:
        advance(done)
        for start in range(done, len(rows), BLOCK):
            block = rows[start : start + BLOCK], requests[start : start + BLOCK]
            logprobs = scorer.score(block[1])
            append_rows(unfinished, (_scored(*one, decay) for one in zip(*block, logprobs, strict=True)))
            advance(len(block[0]))
    os.replace(unfinished, out)
    settings.unlink()

    total, tokens = sum(row["sum"] for _, row in read_rows(out)), sum(len(r.continuation) for r in requests)
    mean = total / tokens
    summary = {"pairs": len(rows), "tokens": tokens, "nats a token": mean, "perplexity": math.exp(-mean)}
    console.print(counts_table("scored", summary))


def _encode(
    tokenizer: "PreTrainedTokenizerBase", row: Mapping[str, Any], place: str, before: tuple[int, ...]
) -> "ScoreRequest":
    """The ids `before`, then those of the whole text, cut where the continuation begins; a token across is in
    it.

    Control tokens spelled in the text stay text. ValueError names the place of a malformed row.
    """
    from rationalyst_jax.files.rows import text_field
    from rationalyst_jax.lm.engine.requests import ScoreRequest

    context, continuation = text_field(row, "context", place), text_field(row, "continuation", place)
    if not continuation:
        raise ValueError(f"{place}: 'continuation' is empty")
    encoded = tokenizer(
        context + continuation,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
    )
    ids = encoded["input_ids"]
    cut = sum(end <= len(context) for _, end in encoded["offset_mapping"])
    if not before and not cut:
        raise ValueError(f"{place}: nothing stands before the continuation: give a context, or --bos a token")
    return ScoreRequest((*before, *ids[:cut]), tuple(ids[cut:]))


def _scored(placed: tuple[str, Mapping[str, Any]], request: "ScoreRequest", logprobs: Any, decay: float):
    """The row of a pair, with what the model gives its continuation."""
    from typing import get_args

    from rationalyst_jax.lm.trees.reduction import Reduction, reduce_logprobs

    reduced = {name: reduce_logprobs(logprobs, name, decay) for name in get_args(Reduction)}
    return {**placed[1], "tokens": request.continuation, "logprobs": logprobs.tolist(), **reduced}
