"""A language model copies documents and inserts rationales; a killed run continues where it stopped."""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.generate import Engine, GenerateRequest
from rationalyst_jax.lm.prompt import PromptSet, render
from rationalyst_jax.mine.documents import Annotation, Document, read_annotations


@dataclass(frozen=True)
class AnnotateConfig:
    """How documents are annotated.

    temperature: 1, because the greedy copy of a small model holds only vacuous rationales.
    block: documents generated, and written, at once.
    max_document_tokens: longer documents are left out ("too_long").
    length_factor, length_margin, length_bucket: an output may have length_factor · document tokens +
        length_margin tokens, rounded up to a multiple of length_bucket (few sizes, few compilations).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    block: int = 64
    max_document_tokens: int = 2048
    length_factor: float = 1.6
    length_margin: int = 64
    length_bucket: int = 128


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
    done = _resume(path, documents, config.block)
    progress(done)
    with path.open("ab") as file:
        for first in range(done, len(documents), config.block):
            block = documents[first : first + config.block]
            annotations = annotate_block(block, first, engine, tokenizer, prompts, config)
            file.write(b"".join(_line(annotation) for annotation in annotations))
            file.flush()
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
    requests: dict[int, GenerateRequest] = {}
    for i, document in enumerate(documents):
        length = len(tokenizer(document.text, add_special_tokens=False)["input_ids"])
        if length > config.max_document_tokens:
            continue
        context, _ = render(tokenizer, prompt, {"document": document.text}, target=None, close=False)
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


def _line(annotation: Annotation) -> bytes:
    document = annotation.document
    row = {
        "id": document.id,
        "source": document.source,
        "input": document.text,
        "output": annotation.output,
        "finish": annotation.finish,
    }
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _resume(path: Path, documents: Sequence[Document], block: int) -> int:
    """Cuts the file after its last whole block and returns the number of documents in it."""
    path.touch()
    with path.open("r+b") as file:
        lines = [line for line in file if line.endswith(b"\n")]
        file.truncate(sum(map(len, lines)))  # a kill may have left half a line
    for i, annotation in enumerate(read_annotations(path)):
        expected = documents[i] if i < len(documents) else None
        if annotation.document != expected:
            name = "no document" if expected is None else repr(expected.id)
            raise ValueError(
                f"{path}:{i + 1}: annotates {annotation.document.id!r}, this run has {name} there"
            )
    done = len(lines) if len(lines) == len(documents) else len(lines) - len(lines) % block
    os.truncate(path, sum(map(len, lines[:done])))
    return done
