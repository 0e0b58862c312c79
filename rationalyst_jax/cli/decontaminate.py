"""`rationalyst decontaminate`: documents that hold a question of an evaluation set go."""

from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from rationalyst_jax.cli.task_sources import sources_by_task
from rationalyst_jax.mine.config import DecontaminateConfig
from rationalyst_jax.report.progress import track
from rationalyst_jax.report.tables import contamination_table, outcomes_table


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_function_arguments(run, as_group=False, skip={"against"})
    parser.add_argument(
        "--against",
        nargs="+",
        metavar="TASK=FILE",
        required=True,
        help="Questions of evaluation sets, each TASK=FILE or TASK=tfds:NAME[:SPLIT][@DIR], such as "
        "gsm8k=test.jsonl. Tasks that are not named are not looked for.",
    )


def run(documents: Path, out: Path, decontaminate: DecontaminateConfig, against: list[str]) -> None:
    """Drop documents that have words in common with the questions that models will be evaluated on.

    Args:
        documents: File of documents, or folder of shards: JSONL, JSON, CSV (.gz and .zst too) or Parquet.
            Each row has text, and may have id and source.
        out: Folder to write to. Its folder documents has those that stay, in files of the same names, and
            its folder verdicts says of each document that meets a question which one, and the words. A killed
            run continues there.
        decontaminate: Which documents hold a question.
    """
    from rationalyst_jax.pipeline.decontaminate import decontaminate as drop_questions
    from rationalyst_jax.tasks.benchmarks import TASKS

    sources = sources_by_task("--against", against)
    console = Console()
    with track(console, "shards") as progress:
        outcomes, found = drop_questions(documents, sources, decontaminate, out, progress=progress)
    console.print(outcomes_table(outcomes))
    console.print(contamination_table(found))
    if missing := [name for name in TASKS if name not in found]:
        console.print(f"not looked for: {', '.join(missing)}", style="yellow", markup=False)
