"""`rationalyst data`: prepares a benchmark's rows, or rationales, for TensorFlow Datasets."""

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.markup import escape

from rationalyst_jax.report.progress import track
from rationalyst_jax.report.tables import counts_table
from rationalyst_jax.tasks.names import TaskName


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_function_arguments(run, as_group=False)
    parser.add_argument(
        "--from",
        nargs="+",
        required=True,
        help="Files of rows, each FILE or SPLIT=FILE. A row of a FILE alone goes to the split that the row "
        "itself names, else to the one that the file's name names (train, validation, dev, val or test); "
        "rationales go to train.",
    )


def run(task: Literal[TaskName, "rationales"], out: Path, **options: list[str]) -> None:
    """Prepare the rows of a benchmark, or mined rationales, as ArrayRecord of TensorFlow Datasets.

    `--questions tfds:NAME[:SPLIT][@DIR]` and `--rationales tfds:NAME[:SPLIT][@DIR]` read it.

    Args:
        task: Name of the benchmark, or rationales. It decides how rows are read.
        out: Folder of data sets (the DIR) to write this one in. One that is there already is not replaced.
    """
    from rationalyst_jax.pipeline.data import prepare_questions, prepare_rationales
    from rationalyst_jax.tasks.benchmarks import task_named

    files = options["from"]  # a word that no parameter can be named by
    console = Console()
    with track(console, "rows") as progress:
        if task == "rationales":
            summary = prepare_rationales(files, out, progress)
        else:
            summary = prepare_questions(task_named(task), files, out, progress)
    console.print(counts_table("prepared", summary.splits))
    source = escape(f"tfds:{summary.name}:SPLIT@{out}")
    console.print(f"{escape(str(summary.folder))}: {source} reads it", soft_wrap=True, highlight=False)
