"""Tables of graded answers: of files of traces, and of choices by likelihood."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from rationalyst_jax.report.style import p_value, percent, plain_table, points

if TYPE_CHECKING:  # they import scipy, and help comes before that
    from rationalyst_jax.evaluate.choice_likelihood import GuidedAccuracy, Rule
    from rationalyst_jax.evaluate.grade import Comparison, Summary
    from rationalyst_jax.evaluate.statistics import Interval
    from rationalyst_jax.tasks.task import Task

# What lm-evaluation-harness calls the accuracy under a rule.
HARNESS: "Mapping[Rule, str]" = {
    "sum": "acc",
    "per_character": "acc_norm",
    "per_byte": "acc_bytes",
    "unconditional": "acc_mutual_info",
}


def grades_table(task: "Task", graded: "Mapping[str, tuple[Summary, Summary]]") -> Table:
    """The accuracy of each run by the strict and by the flexible reading, and what has no verdict; at least
    one run."""
    table = plain_table(f"{task.title}: accuracy in %, 95 % intervals", "traces")
    for heading in ("strict", "flexible", "n", "unanswered", "undecided"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, (strict, flexible) in graded.items():
        accuracies = (percent(s.accuracy, s.low, s.high) for s in (strict, flexible))
        counts = (strict.n, strict.unanswered, strict.undecided)
        table.add_row(escape(name), *accuracies, *map(str, counts))
    [questions] = {strict.questions for strict, _ in graded.values()}
    table.caption = f"n: answers to {_of_split(questions, task)}"
    return table


def compared_table(other: str, compared: "Mapping[str, Comparison]") -> Table:
    """The difference of each run to the run `other` on the same questions."""
    table = plain_table(f"strict accuracy − that of {escape(other)}", "traces")
    for heading in ("difference [95 %]", "p", "p (Holm)", "smallest"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, c in compared.items():
        adjusted = "–" if c.p_holm is None else p_value(c.p_holm)
        smallest = "–" if c.smallest is None else f"{100 * c.smallest:.1f}"
        table.add_row(escape(name), points(c.difference, c.low, c.high), p_value(c.p), adjusted, smallest)
    table.caption = (
        "p: exact McNemar; Holm: adjusted for all of these;\n"
        "smallest: the smallest true difference that so many questions show with probability 0.8"
    )
    return table


def choices_table(task: "Task", questions: int, accuracy: "Mapping[Rule, Interval]") -> Table:
    """The accuracy under each rule, of so many questions with a known answer."""
    title = f"{task.title}: accuracy in % by the likelihood of the choices, 95 % intervals"
    table = plain_table(title, "rule")
    table.add_column("lm-evaluation-harness")
    table.add_column("accuracy", justify="right", no_wrap=True)
    for rule, of_rule in accuracy.items():
        table.add_row(rule, HARNESS.get(rule, "–"), percent(of_rule.mean, of_rule.low, of_rule.high))
    table.caption = f"n = {_of_split(questions, task)}"
    return table


def guided_choices_table(task: "Task", guided: "Mapping[Rule, GuidedAccuracy]") -> Table:
    """The accuracy under each rule with a rationale before the choices, and what it does."""
    table = plain_table(f"{task.title}: with a rationale before the choices", "rule")
    for heading in ("accuracy", "− without", "− with another's"):
        table.add_column(heading, justify="right", no_wrap=True)
    for rule, of_rule in guided.items():
        differences = of_rule.own_less_none, of_rule.own_less_stranger
        table.add_row(
            rule,
            percent(of_rule.own.mean, of_rule.own.low, of_rule.own.high),
            *(points(one.mean, one.low, one.high) for one in differences),
        )
    table.caption = (
        "differences on the same questions, in points: to none,\nand to the rationale of another question"
    )
    return table


def _of_split(questions: int, task: "Task") -> str:
    """How many questions, and how many the evaluated split has: other files are easily taken for it."""
    return f"{questions} questions; the split {task.split} of {task.title} has {task.size}"
