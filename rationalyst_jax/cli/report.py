"""`rationalyst report`: one page that shows a run, or files of traces, in a browser."""

from argparse import ArgumentError
from pathlib import Path

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from rich.console import Console

from rationalyst_jax.tasks.names import TaskName

OWN = ("task", "questions", "traces", "limit")  # of traces without a run directory


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_function_arguments(run, as_group=False, skip={"traces"})
    parser.add_argument(
        "--traces",
        type=Path,
        nargs="+",
        help="Instead of a run: JSONL files of traces that `rationalyst reason` wrote, each a run on the "
        "same questions, or folders whose files *.jsonl are parts of one run. All are compared with the "
        "first.",
    )


def run(
    traces: list[Path] | None,
    run: Path | None = None,
    task: TaskName | None = None,
    questions: str | None = None,
    limit: PositiveInt | None = None,  # pyright: ignore[reportInvalidTypeForm]
    out: Path | None = None,
) -> None:
    """Write one HTML file that shows a run: its tables and plots, every question step by step, and every
    document with its rationales.

    It works from disk and without a network. `demo` and `benchmark` write it by themselves.

    Args:
        run: Run directory of a finished `rationalyst demo`, `ablate` or `benchmark`.
        task: Name of the benchmark that the traces are of.
        questions: File of the questions that the traces are of, or tfds:NAME[:SPLIT][@DIR].
        limit: Number of questions to show, from the first on; by default all.
        out: HTML file to write; by default report.html in the run directory, or here.
    """
    given = {
        name for name, value in zip(OWN, (task, questions, traces, limit), strict=True) if value is not None
    }
    if run is not None and given:
        raise ArgumentError(None, f"--run knows its own {', '.join(name for name in OWN if name in given)}")
    from rationalyst_jax.pipeline.report import PAGE, report_run, report_traces
    from rationalyst_jax.tasks.benchmarks import task_named

    if run is not None:
        out = out or run / PAGE
        size = report_run(run, out)
    elif task is not None and questions is not None and traces is not None:
        out = out or Path(PAGE)
        refuse_repeated(traces)
        runs = {str(path): [path] for path in traces}
        size = report_traces(task_named(task), questions, runs, out, limit=limit)
    else:
        raise ArgumentError(None, "give --run, or --task, --questions and --traces")
    Console().print(
        f"{out}: {size / 1e6:.1f} MB, open it in a browser", markup=False, soft_wrap=True, highlight=False
    )


def refuse_repeated(traces: list[Path]) -> None:
    """Raises ArgumentError for a file that is given twice: it would be compared with itself."""
    for number, path in enumerate(traces):
        if path in traces[:number]:
            raise ArgumentError(None, f"--traces has {path} twice")
