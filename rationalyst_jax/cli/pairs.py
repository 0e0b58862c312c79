"""Pairs of raw texts as token ids, and their scores."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast, get_args

from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.generate import Engine, ScoreRequest
from rationalyst_jax.lm.likelihood import Reduction, reduce_logprobs

BLOCK = 256  # pairs scored, and written, at once


def encode_pair(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], place: str) -> ScoreRequest:
    """The ids of the whole text after BOS, cut where the continuation begins; a token across is in it.

    Control tokens spelled in the text stay text. ValueError names the place of a malformed row.
    """
    context, continuation = row.get("context"), row.get("continuation")
    if not isinstance(context, str):
        raise ValueError(f"{place}: 'context' must be text, found {context!r:.60}")
    if not isinstance(continuation, str) or not continuation:
        raise ValueError(f"{place}: 'continuation' must be text, not empty, found {continuation!r:.60}")
    encoded = tokenizer(
        context + continuation,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
    )
    ids = encoded["input_ids"]
    cut = sum(end <= len(context) for _, end in encoded["offset_mapping"])
    bos = cast(int, tokenizer.bos_token_id)
    return ScoreRequest((bos, *ids[:cut]), tuple(ids[cut:]))


def score_rows(
    engine: Engine, rows: Sequence[Mapping[str, Any]], requests: Sequence[ScoreRequest], decay: float
) -> Iterator[dict[str, Any]]:
    """Each row with what the model gives its continuation; computed block by block."""
    for start in range(0, len(rows), BLOCK):
        block = requests[start : start + BLOCK]
        for row, request, logprobs in zip(rows[start:], block, engine.score(block), strict=False):
            reduced = {name: reduce_logprobs(logprobs, name, decay) for name in get_args(Reduction)}
            yield {**row, "tokens": request.continuation, "logprobs": logprobs.tolist(), **reduced}
