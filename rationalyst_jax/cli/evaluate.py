"""`rationalyst evaluate`: accuracy of traces, and each compared with the first."""

from pathlib import Path

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from rich.console import Console
from rich.markup import escape

from rationalyst_jax.report.grades import compared_table, grades_table
from rationalyst_jax.tasks.names import TaskName


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_function_arguments(run, as_group=False, skip={"traces"})
    parser.add_argument(
        "--traces",
        type=Path,
        nargs="+",
        required=True,
        help="Runs, each compared with the first: a JSONL file of traces that `rationalyst reason` wrote, or "
        "of another program's samples; or a folder, whose files *.jsonl are parts of one run, each on "
        "questions of its own.",
    )


def run(
    task: TaskName,
    questions: str,
    traces: list[Path],
    limit: PositiveInt | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> None:
    """Grade traces, with intervals, and compare each file of them with the first on the same questions.

    It also reads the sample files of lm-evaluation-harness (--log_samples) and of the released scripts.

    Args:
        task: Name of the benchmark. It decides how questions are read and answers are graded.
        questions: File of the benchmark's questions, in its own format (gsm8k: JSONL of question and answer),
            or tfds:NAME[:SPLIT][@DIR], a set that `rationalyst data` or TensorFlow Datasets prepared in DIR.
        limit: Number of questions to use, from the first on; by default all. Traces of the others are left
            out.
    """
    from rationalyst_jax.pipeline.evaluate import evaluate
    from rationalyst_jax.tasks.benchmarks import task_named

    names = {str(path): [path] for path in traces}
    first = next(iter(names))
    benchmark = task_named(task)
    results = evaluate(benchmark, questions, names, [first], limit=limit)
    console = Console()
    graded = {name: (result.accuracy, result.flexible) for name, result in results.items()}
    console.print(grades_table(benchmark, graded))
    if len(results) > 1:
        compared = {name: result.versus[first] for name, result in results.items() if name != first}
        console.print(compared_table(first, compared))
    for name, result in results.items():
        if result.accuracy.accuracy == 0:
            console.print(
                f"{escape(name)}: none of {result.accuracy.n} right; whatever wrote it solves nothing here"
            )
