"""Log-likelihoods of continuations, for any pairs of texts as they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.files.rows import Row, append_rows, kept_rows, read_table, text_field, write_rows
from rationalyst_jax.files.settings import claimed
from rationalyst_jax.files.whole import check_file
from rationalyst_jax.lm.engine.requests import ScoreRequest
from rationalyst_jax.lm.trees.reduction import Reduction, reduce_logprobs
from rationalyst_jax.lm.weights.tokenizer import single_tokens
from rationalyst_jax.pipeline.models import Models, Place
from rationalyst_jax.prompts.prompt import opening_ids

BLOCK = 256  # pairs scored, and written, at once


@dataclass(frozen=True)
class ScoreSummary:
    """pairs: how many; tokens: of their continuations; total: the sum of their log-probabilities (nats)."""

    pairs: int
    tokens: int
    total: float


def score(
    pairs: Path,
    model: Place,
    models: Models,
    out: Path,
    *,
    decay: float = 0.9,
    bos: str | None = None,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
) -> ScoreSummary:
    """Scores the pairs of a JSONL file: BOS, the context, the continuation, without a chat template.

    bos: the token put before each text. By default what the tokenizer itself puts there, or else its BOS;
    nothing where that opens every message of a chat (as <|im_start|> does in some ChatML models).

    `out` gets each pair with `tokens`, `logprobs` (nats) and all reductions. Until it is whole it is called
    `<out>.partial`; a run that was killed continues there, and scores anew only blocks of pairs that have
    changed since. Raises ValueError naming file and line of a malformed pair or one longer than the model's
    positions (before the model is loaded), for work begun with other settings, and while another process is
    at this work.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"score: decay must be above 0 and at most 1, got {decay}")
    check_file(out)
    checkpoint = models.checkpoint(model)
    rows = list(read_table(pairs))
    tokenizer = checkpoint.tokenizer
    before = opening_ids(tokenizer) if bos is None else single_tokens(tokenizer, [bos], "bos")
    requests = [encode(tokenizer, row, place, before) for place, row in rows]
    positions = checkpoint.config.max_position_embeddings
    for (place, _), request in zip(rows, requests, strict=True):
        length = len(request.context) + len(request.continuation)
        if length > positions:
            raise ValueError(f"{place}: {length} tokens, the model has {positions} positions")

    partial = out.with_name(f"{out.name}.partial")
    record = out.with_name(f"{out.name}.config.json")

    def check(place: str, row: Row) -> int | None:
        if row.keys() != {"number", "pair", "scores"}:
            raise ValueError(f"{place}: not a row of scores")
        number = row["number"]
        return number if number < len(rows) and row["pair"] == rows[number][1] else None

    settings = {"model": models.known(model).name, "decay": decay, "bos": list(before)}
    with claimed(record, settings, partial):
        done = set(kept_rows(partial, check))
        [role] = models.roles(model)
        engine: Any = role.model

        def tell() -> None:
            progress(len(done), len(rows), engine.tokens)

        tell()
        for start in range(0, len(rows), BLOCK):
            block = range(start, min(start + BLOCK, len(rows)))
            if done.issuperset(block):
                continue
            logprobs = engine.score([requests[number] for number in block], tell)
            new = []
            for number, values in zip(block, logprobs, strict=True):
                scores = _scores(requests[number], values, decay)
                new.append({"number": number, "pair": rows[number][1], "scores": scores})
            append_rows(partial, new)
            done.update(block)
            tell()
        kept = kept_rows(partial, check)
        if len(kept) != len(rows):
            raise ValueError(f"{partial}: holds {len(kept)} of {len(rows)} pairs")
        ordered = [{**kept[number]["pair"], **kept[number]["scores"]} for number in range(len(rows))]
        write_rows(out, ordered)
        partial.unlink()
        record.unlink()
    tokens = sum(len(request.continuation) for request in requests)
    return ScoreSummary(len(rows), tokens, sum(row["sum"] for row in ordered))


def encode(
    tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], place: str, before: tuple[int, ...]
) -> ScoreRequest:
    """The ids `before`, then those of the whole text, cut where the continuation begins.

    A token across the border belongs to the continuation. Control tokens spelled in the text stay text.
    Raises ValueError naming the place of a malformed row.
    """
    context = text_field(row, "context", place)
    continuation = text_field(row, "continuation", place)
    if not continuation:
        raise ValueError(f"{place}: 'continuation' is empty")
    encoded = tokenizer(
        context + continuation,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
    )
    ids: Any = encoded["input_ids"]
    offsets: Any = encoded["offset_mapping"]
    cut = sum(end <= len(context) for _, end in offsets)
    if not before and not cut:
        raise ValueError(f"{place}: nothing stands before the continuation: give a context, or --bos a token")
    return ScoreRequest((*before, *ids[:cut]), tuple(ids[cut:]))


def _scores(request: ScoreRequest, logprobs: np.ndarray, decay: float) -> Row:
    """What the model gives a continuation, under the keys that a pair gets."""
    reduced = {name: reduce_logprobs(logprobs, name, decay) for name in get_args(Reduction)}
    return {"tokens": list(request.continuation), "logprobs": logprobs.tolist(), **reduced}
