"""A language model annotates documents; a killed run continues where it stopped.

Two ways: it copies a document and inserts rationales into the copy (here), or it writes rationales for places
of the document (`mine/insert.py`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rationalyst_jax.files.rows import Row, append_rows, kept_rows, write_rows
from rationalyst_jax.mine.config import AnnotateConfig
from rationalyst_jax.mine.documents import Annotated, Annotation, Document, annotated_row, read_annotated
from rationalyst_jax.mine.insert import insert
from rationalyst_jax.prompts.prompt import PromptSet
from rationalyst_jax.roles.drive import ask, drive
from rationalyst_jax.roles.role import Role, Sampling, derived_seed
from rationalyst_jax.roles.usage import Usage


def annotate(
    documents: Sequence[Document],
    annotator: Role,
    prompts: PromptSet,
    config: AnnotateConfig,
    path: Path,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
    *,
    only: Sequence[int] | None = None,
) -> list[Annotated]:
    """Annotates `documents` into the JSONL file `path` and returns their annotations, in their order.

    A document's row is written as soon as it is annotated; in the end the rows stand in the documents' order.
    A file that is already there is continued: what it has of this run's documents is kept, and what it has of
    a document whose text has changed is made anew. Each document has its own noise, so a continued run writes
    what an uninterrupted one does (but where two words are equally likely up to float rounding). What a
    document took is added to the file of `usage_path`. only: numbers of the documents to annotate, in whole
    blocks, where others are annotated elsewhere; rows of those stay. `progress` is told how many documents
    are done, of how many, and how many tokens this call has computed.

    Raises ValueError where the file annotates other documents, and, when all others are done, if documents
    failed (at an endpoint): called again, it tries them again.
    """
    only = range(len(documents)) if only is None else only
    own = {documents[number].id for number in only}
    document_of = of_run(documents)

    def check(place: str, row: Row) -> str | None:
        document = document_of(place, row)
        if row.get("input") != document.text:
            return None
        annotated = read_annotated(row, place, document)
        if row != annotated_row(annotated):
            return None
        (done if document.id in own else others)[document.id] = annotated
        return document.id

    done: dict[str, Annotated] = {}
    others: dict[str, Annotated] = {}
    kept_rows(path, check)
    if done or others:
        read_usage(path)  # cuts off what a kill left of a row
    else:
        usage_path(path).unlink(missing_ok=True)

    def tell() -> None:
        progress(len(done), len(only), annotator.model.tokens)

    tell()
    failures: dict[str, Exception] = {}
    for first in range(0, len(only), config.block):
        block = only[first : first + config.block]
        missing = [number for number in block if documents[number].id not in done]
        if not missing:
            continue

        def finished(index: int, result: tuple[Annotated, Usage]) -> None:
            annotated, used = result
            id = annotated.document.id
            append_rows(usage_path(path), [{"id": id, **asdict(used)}])
            append_rows(path, [annotated_row(annotated)])
            done[id] = annotated

        def failed(index: int, error: Exception, missing: Sequence[int] = missing) -> None:
            failures[documents[missing[index]].id] = error

        to_annotate = {number: documents[number] for number in missing}
        annotate_block(to_annotate, annotator, prompts, config, finished, failed, tell)
    if failures:
        name = next(document.id for document in documents if document.id in failures)
        error = failures[name]
        raise ValueError(
            f"annotate: {len(failures)} of {len(only)} documents failed, as document {name}: {error}; "
            f"the others are in {path}, and the same run again tries these again"
        )
    found = done | others
    write_rows(path, (annotated_row(found[one.id]) for one in documents if one.id in found))
    return [done[documents[number].id] for number in only]


def of_run(documents: Sequence[Document]) -> Callable[[str, Row], Document]:
    """What tells of a row of annotations, at a place "file:line", which document's it is; it raises
    ValueError for one of no document."""
    by_id = {document.id: document for document in documents}

    def document_of(place: str, row: Row) -> Document:
        document = by_id.get(row.get("id", ""))
        if document is None:
            raise ValueError(f"{place}: annotates {row.get('id')!r}, which is no document of this run")
        return document

    return document_of


def annotate_block(
    block: Mapping[int, Document],
    annotator: Role,
    prompts: PromptSet,
    config: AnnotateConfig,
    finished: Callable[[int, tuple[Annotated, Usage]], None],
    failed: Callable[[int, Exception], None],
    working: Callable[[], None] = lambda: None,
) -> None:
    """Annotates documents at the same time, each with its place in the whole run.

    `finished` and `failed` are told the number of a document in the block, and `working` of every step, as by
    `drive`.
    """
    annotator.model.forget()
    method = _METHODS[config.method]
    coroutines = [method(document, i, annotator, prompts, config) for i, document in block.items()]
    drive(coroutines, [annotator.model], finished, failed, working)


def usage_path(annotations: Path) -> Path:
    """Where the ledger of a file of annotations is: a row for each time that a document was annotated."""
    return annotations.with_suffix(".usage.jsonl")


def read_usage(annotations: Path) -> Usage:
    """What annotating took so far, also what a kill lost. Raises ValueError naming a malformed row."""
    total = Usage()

    def add(place: str, row: Row) -> str:
        nonlocal total
        try:
            total += Usage(**{key: count for key, count in row.items() if key != "id"})
        except TypeError as error:
            raise ValueError(f"{place}: not a row of a ledger ({error})") from None
        return place

    kept_rows(usage_path(annotations), add)
    return total


async def copy(
    document: Document, number: int, annotator: Role, prompts: PromptSet, config: AnnotateConfig
) -> tuple[Annotation, Usage]:
    """Asks for the copy of the document at place `number` of the whole run."""
    prompt = prompts["annotate"]
    length = annotator.count_tokens(document.text)
    how = Sampling(
        max_tokens=math.ceil(config.length_factor * length + config.length_margin),
        temperature=config.temperature,
        top_p=config.top_p,
        stop=(prompt.closing,) if prompt.closing else (),
        seed=derived_seed(config.seed, number),
    )
    request = annotator.to_generate(prompt, {"document": document.text}, how)
    if length > config.max_document_tokens or not annotator.has_room(request, length):
        return Annotation(document, "", "too_long"), Usage()
    [handle] = await ask((annotator.model, request))
    [generation] = handle.result
    return Annotation(document, generation.text, generation.finish), Usage.of(annotator.model, handle)


_METHODS = {"copy": copy, "insert": insert}
