"""`rationalyst evaluate`: accuracy of traces, and each compared with the first."""

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rationalyst_jax.evaluate.grade import Comparison, Summary


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_function_arguments(run, as_group=False, skip={"traces"})
    parser.add_argument(
        "--traces",
        type=Path,
        nargs="+",
        required=True,
        help="Runs, each compared with the first: a JSONL file of traces that `rationalyst reason` wrote, or of "
        "another program's samples; or a folder, whose files *.jsonl are parts of one run, each on questions "
        "of its own.",
    )


def run(
    task: str,
    questions: str,
    traces: list[Path],
    limit: PositiveInt | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> None:
    """Grade traces, with intervals, and compare each file of them with the first on the same questions.

    It also reads the sample files of lm-evaluation-harness (--log_samples) and of the released scripts.

    Args:
        task: Name of the benchmark (gsm8k, math, math500, commonsense_qa, ecqa, hellaswag,
            proofwriter, arc, mmlu_pro).
            It decides how questions are read and answers are graded.
        questions: File of the benchmark's questions, in its own format (gsm8k: JSONL of question and answer),
            or tfds:NAME[:SPLIT][@DIR], a set that `rationalyst data` or TensorFlow Datasets prepared in DIR.
        limit: Number of questions to use, from the first on; by default all. Traces of the others are left
            out.
    """
    from rationalyst_jax.pipeline.evaluate import evaluate
    from rationalyst_jax.tasks.benchmarks import task_named

    names = {str(path): [path] for path in traces}
    first = next(iter(names))
    results = evaluate(task_named(task), questions, names, [first], limit=limit)
    graded = Table(title=f"{task}: accuracy in %, 95 % intervals", title_justify="left")
    graded.add_column("traces", overflow="fold")
    for heading in ("strict", "flexible", "n", "unanswered", "undecided"):
        graded.add_column(heading, justify="right")
    compared = Table(title=f"strict accuracy − that of {escape(first)}", title_justify="left")
    compared.add_column("traces", overflow="fold")
    for heading in ("difference", "p", "p (Holm)", "shows"):
        compared.add_column(heading, justify="right")
    compared.caption = "p: exact McNemar; Holm: for all of these. shows: the difference seen 4 times in 5"
    for name, result in results.items():
        row = (_accuracy(result.accuracy), _accuracy(result.flexible), *_counts(result.accuracy))
        graded.add_row(escape(name), *row)
        if name != first:
            compared.add_row(escape(name), *_compared(result.versus[first]))
    console = Console()
    console.print(graded)
    if len(results) > 1:
        console.print(compared)
    for name, result in results.items():
        if result.accuracy.accuracy == 0:
            console.print(
                f"{escape(name)}: none of {result.accuracy.n} right; whatever wrote it solves nothing here"
            )


def _accuracy(s: "Summary") -> str:
    return f"{_percent(s.accuracy)} [{_percent(s.low)}, {_percent(s.high)}]"


def _counts(s: "Summary") -> tuple[str, ...]:
    return str(s.n), str(s.unanswered), str(s.undecided)


def _compared(c: "Comparison") -> tuple[str, ...]:
    difference = f"{_percent(c.difference, '+')} [{_percent(c.low, '+')}, {_percent(c.high, '+')}]"
    shows = "–" if c.smallest is None else _percent(c.smallest)
    return difference, f"{c.p:.2g}", f"{c.p_holm:.2g}", shows


def _percent(share: float, sign: str = "") -> str:
    return f"{100 * share:{sign}.1f}"
