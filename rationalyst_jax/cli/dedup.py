"""`rationalyst dedup`: documents that are like an earlier one go."""

from pathlib import Path

from rich.console import Console

from rationalyst_jax.mine.config import DedupConfig
from rationalyst_jax.report.progress import track
from rationalyst_jax.report.tables import outcomes_table


def run(documents: Path, out: Path, dedup: DedupConfig) -> None:
    """Drop documents that are exact or near duplicates of an earlier one.

    Of documents that are alike the first stays, by the names of files and the order of rows in them.

    Args:
        documents: File of documents, or folder of shards: JSONL, JSON, CSV (.gz and .zst too) or Parquet.
            Each row has text, and may have id and source.
        out: Folder to write to. Its folder documents has those that stay, in files of the same names, and
            its folder verdicts says of each other document why it goes and which one it is like. A killed run
            continues there.
        dedup: Which documents are duplicates.
    """
    from rationalyst_jax.pipeline.dedup import dedup as drop_duplicates

    console = Console()
    with track(console, "shards, each read twice") as progress:
        outcomes = drop_duplicates(documents, dedup, out, progress=progress)
    console.print(outcomes_table(outcomes))
