"""A language model copies documents and inserts rationales; a killed run continues where it stopped."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rationalyst_jax.files.rows import Row, append_rows, kept_rows, write_rows
from rationalyst_jax.mine.config import AnnotateConfig
from rationalyst_jax.mine.documents import Annotation, Document
from rationalyst_jax.prompts.prompt import Prompt, PromptSet
from rationalyst_jax.roles.drive import ask, drive
from rationalyst_jax.roles.role import Role, Sampling


def annotate(
    documents: Sequence[Document],
    annotator: Role,
    prompts: PromptSet,
    config: AnnotateConfig,
    path: Path,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
) -> list[Annotation]:
    """Annotates `documents` into the JSONL file `path` and returns all annotations, in their order.

    A document's row is written as soon as it is annotated; in the end the rows stand in the documents' order.
    A file that is already there is continued: what it has of this run's documents is kept, and what it has of
    a document whose text has changed is made anew. Each document has its own noise, so a continued run writes
    what an uninterrupted one does (but where two words are equally likely up to float rounding). `progress`
    is told how many documents are done, of how many, and how many tokens this call has computed.

    Raises ValueError where the file annotates other documents, and, when all others are done, if documents
    failed (at an endpoint): called again, it tries them again.
    """
    by_id = {document.id: document for document in documents}

    def check(place: str, row: Row) -> str | None:
        document = by_id.get(row.get("id", ""))
        if document is None:
            raise ValueError(f"{place}: annotates {row.get('id')!r}, which is no document of this run")
        annotation = Annotation(document, row.get("output", ""), row.get("finish", ""))
        return document.id if row == _row(annotation) else None

    rows = kept_rows(path, check)

    def tell() -> None:
        progress(len(rows), len(documents), annotator.model.tokens)

    tell()
    failures: dict[str, Exception] = {}
    for first in range(0, len(documents), config.block):
        block = range(first, min(first + config.block, len(documents)))
        missing = [number for number in block if documents[number].id not in rows]
        if not missing:
            continue

        def finished(index: int, annotation: Annotation) -> None:
            row = _row(annotation)
            append_rows(path, [row])
            rows[annotation.document.id] = row

        def failed(index: int, error: Exception, missing: Sequence[int] = missing) -> None:
            failures[documents[missing[index]].id] = error

        annotator.model.forget()
        prompt = prompts["annotate"]
        coroutines = [_annotated(documents[i], i, annotator, prompt, config) for i in missing]
        drive(coroutines, [annotator.model], finished, failed, tell)
    if failures:
        name, error = next(iter(failures.items()))
        raise ValueError(
            f"annotate: {len(failures)} of {len(documents)} documents failed, as document {name}: {error}; "
            f"the others are in {path}, and the same run again tries these again"
        )
    write_rows(path, (rows[document.id] for document in documents))
    return [Annotation(d, rows[d.id]["output"], rows[d.id]["finish"]) for d in documents]


async def _annotated(
    document: Document, number: int, annotator: Role, prompt: Prompt, config: AnnotateConfig
) -> Annotation:
    """Asks for the copy of the document at place `number` of the whole run."""
    length = annotator.count_tokens(document.text)
    how = Sampling(
        max_tokens=math.ceil(config.length_factor * length + config.length_margin),
        temperature=config.temperature,
        top_p=config.top_p,
        stop=(prompt.closing,) if prompt.closing else (),
        seed=document_seed(config.seed, number),
    )
    request = annotator.to_generate(prompt, {"document": document.text}, how)
    if length > config.max_document_tokens or not annotator.has_room(request, length):
        return Annotation(document, "", "too_long")
    [handle] = await ask((annotator.model, request))
    [generation] = handle.result
    return Annotation(document, generation.text, generation.finish)


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
