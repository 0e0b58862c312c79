"""A language model copies documents and inserts rationales; a killed run continues where it stopped."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.files.rows import Row, append_rows, resume_rows
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import GenerateRequest
from rationalyst_jax.mine.config import AnnotateConfig
from rationalyst_jax.mine.documents import Annotation, Document, read_annotations
from rationalyst_jax.prompts.prompt import PromptSet, render


def annotate(
    documents: Sequence[Document],
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    config: AnnotateConfig,
    path: str | Path,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Annotation]:
    """Annotates `documents` into the JSONL file `path` and returns all annotations, in their order.

    A file that is already there is continued: whole blocks are kept, a partial one is cut off and done again.
    As each document has its own seed and blocks never change, the bytes are those of an uninterrupted run.
    `progress` is called with the number of documents that have been done since its last call.

    Raises ValueError where the file annotates other documents.
    """
    path = Path(path)

    def check(place: str, index: int, row: Row) -> None:
        document = documents[index]
        if row != _row(Annotation(document, row.get("output", ""), row.get("finish", ""))):
            raise ValueError(f"{place}: annotates {row.get('id')!r}, this run has {document.id!r} there")

    done = resume_rows(path, config.block, len(documents), check)
    progress(done)
    for first in range(done, len(documents), config.block):
        block = documents[first : first + config.block]
        engine.forget()
        append_rows(path, map(_row, annotate_block(block, first, engine, tokenizer, prompts, config)))
        progress(len(block))
    return read_annotations(path)


def annotate_block(
    documents: Sequence[Document],
    first: int,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    config: AnnotateConfig,
) -> list[Annotation]:
    """Annotates `documents`, of which the first stands at position `first` of the whole run."""
    prompt = prompts["annotate"]
    positions = engine.model.config.max_position_embeddings
    requests: dict[int, GenerateRequest] = {}
    for i, document in enumerate(documents):
        length = len(tokenizer(document.text, add_special_tokens=False)["input_ids"])
        context, _ = render(tokenizer, prompt, {"document": document.text}, target=None, close=False)
        if length > config.max_document_tokens or len(context) + length > positions:
            continue
        wanted = config.length_factor * length + config.length_margin
        requests[i] = GenerateRequest(
            context=context,
            max_tokens=math.ceil(wanted / config.length_bucket) * config.length_bucket,
            temperature=config.temperature,
            top_p=config.top_p,
            stop=(prompt.closing,) if prompt.closing else (),
            seed=document_seed(config.seed, first + i),
        )
    generations = dict(zip(requests, engine.generate(list(requests.values())), strict=True))
    return [
        Annotation(document, generations[i][0].text, generations[i][0].finish)
        if i in generations
        else Annotation(document, "", "too_long")
        for i, document in enumerate(documents)
    ]


def document_seed(seed: int, position: int) -> int:
    """The seed of the document at `position`: 31 bits, whatever else is in its block."""
    return int(np.random.SeedSequence([seed, position]).generate_state(1)[0]) >> 1


def _row(annotation: Annotation) -> dict[str, str]:
    document = annotation.document
    return {
        "id": document.id,
        "source": document.source,
        "input": document.text,
        "output": annotation.output,
        "finish": annotation.finish,
    }
