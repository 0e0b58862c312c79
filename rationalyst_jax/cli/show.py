"""`rationalyst show`: one question, step by step, in the terminal."""

from argparse import ArgumentError
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from rationalyst_jax.cli.report import refuse_repeated
from rationalyst_jax.tasks.names import TaskName


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_function_arguments(run, as_group=False, skip={"traces"})
    parser.add_argument(
        "--traces",
        type=Path,
        nargs="+",
        required=True,
        help="JSONL files of traces that `rationalyst reason` wrote, or folders of their parts. Of two it is "
        "said where they part.",
    )


def run(traces: list[Path], id: str, task: TaskName | None = None, questions: str | None = None) -> None:
    """Print one question as the page of `rationalyst report` shows it: each step with its rationale, and the
    candidates with their scores and margins.

    Args:
        id: Identifier of the question.
        task: Name of the benchmark, to show the question and to grade its answers.
        questions: File of the benchmark's questions, or tfds:NAME[:SPLIT][@DIR].
    """
    if (task is None) != (questions is None):
        raise ArgumentError(None, "--task and --questions go together")
    from rationalyst_jax.pipeline.report import find_question, find_trace
    from rationalyst_jax.report.question import question_view
    from rationalyst_jax.tasks.benchmarks import task_named

    refuse_repeated(traces)
    benchmark = None if task is None else task_named(task)
    question = None
    if benchmark is not None and questions is not None:
        question = find_question(benchmark, questions, id)
    found = {str(path): find_trace(path, id, question) for path in traces}
    console = Console(highlight=False)
    verdicts = None
    if benchmark is not None and question is not None:
        graded = benchmark.grade([(trace.answer, question) for trace in found.values()])
        verdicts = dict(zip(found, graded, strict=True))
    for piece in question_view(found, question, verdicts):
        console.print(piece)
