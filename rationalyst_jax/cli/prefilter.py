"""`rationalyst prefilter`: keeps the documents that are like the tasks' training questions."""

from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from rationalyst_jax.cli.task_sources import sources_by_task
from rationalyst_jax.mine.config import PrefilterConfig
from rationalyst_jax.report.progress import track


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_function_arguments(run, as_group=False)
    parser.add_argument(
        "--references",
        nargs="+",
        required=True,
        help="Training questions of the tasks, each set TASK=FILE, TASK=SPLIT=FILE or "
        "TASK=tfds:NAME[:SPLIT][@DIR]. Of a FILE alone the rows or its name must say the split. Only "
        "questions of training splits are used.",
    )


def run(documents: Path, encoder: Path, out: Path, prefilter: PrefilterConfig, **options: list[str]) -> None:
    """Keep the documents whose text is like the tasks' training questions, by the cosine of their embeddings.

    Args:
        documents: File of documents, or folder of shards: JSONL, JSON, CSV (.gz and .zst too) or Parquet.
            Each row has text, and may have id and source.
        encoder: Folder of a sentence encoder, BERT or MPNet, as all-MiniLM-L6-v2 or all-mpnet-base-v2.
        out: Folder to write documents.jsonl to, with what is kept, and prefiltered.parquet, with the cosine
            and the nearest set of every document. A killed run continues there.
        prefilter: How documents are judged.
    """
    from rationalyst_jax.pipeline.prefilter import prefilter as keep
    from rationalyst_jax.report.prefilter import references_table, sources_table

    console = Console()
    references = sources_by_task("--references", options["references"])
    with track(console, "documents scored") as progress:
        summary = keep(documents, references, encoder, prefilter, out, progress=progress)
    console.print(references_table(summary, calibrated=prefilter.alpha is None))
    console.print(sources_table(summary))
