"""Who grades what wrong: the cases of tests/cases, through our readings and through other people's graders.

Of lm-evaluation-harness its own code runs: its filters and its metric, as the YAML file of a task configures
them, on the text up to the task's own stop string. A text counts as it would where the model had written it.
"3 / 1": three right answers missed, and one accepted that is not right.
"""

import json
import logging
from argparse import ArgumentParser
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from lm_eval.api.metrics import exact_match_fn
from lm_eval.filters import get_filter
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.hendrycks_math.utils import process_results as grade_hendrycks
from math_verify import parse, verify
from measure import print_table

from rationalyst_jax.tasks.benchmarks import task_named
from rationalyst_jax.tasks.question import Question, Verdict

CASES = Path(__file__).resolve().parents[1] / "tests" / "cases"
TASKS = Path(str(files("lm_eval.tasks")))
METRIC = ("metric", "aggregation", "higher_is_better")  # of a metric's settings, those that are no options


@dataclass(frozen=True)
class Case:
    """A text that answers a question, and its verdict. fault: what it tries graders with."""

    task: str
    text: str
    gold: str
    verdict: Verdict
    fault: str
    choices: tuple[str, ...]

    @property
    def question(self) -> Question:
        return Question("case", "?", gold=self.gold, choices=self.choices)


Grader = Callable[[Sequence[Case]], list[bool]]  # whether it calls each text a right answer


def read_cases(path: Path) -> list[Case]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Case(path.stem, row["text"], row["gold"], row["verdict"], row["fault"], tuple(row.get("choices", ())))
        for row in rows
    ]


# ---- Ours ----


def ours(reading: str) -> Grader:
    """Our own reading, "extract" (the strict one) or "flexible", and our grade."""

    def right(cases: Sequence[Case]) -> list[bool]:
        task = task_named(cases[0].task)
        questions = [case.question for case in cases]
        answers = [
            getattr(task, reading)(case.text, question)
            for case, question in zip(cases, questions, strict=True)
        ]
        return [verdict == "right" for verdict in task.grade(list(zip(answers, questions, strict=True)))]

    return right


def each(right: Callable[[Case], bool]) -> Grader:
    return lambda cases: list(map(right, cases))


# ---- lm-evaluation-harness ----


def harness(file: str, name: str, target: str = "{gold}") -> Grader:
    """A filter of a task of lm-evaluation-harness, with the task's metric.

    target: what the task's doc_to_target makes of a gold answer.
    """
    settings = load_yaml(TASKS / file, resolve_func=False)
    [filters] = [entry["filter"] for entry in settings["filter_list"] if entry["name"] == name]
    steps = [get_filter(step["function"])(**_but(step, ("function",))) for step in filters]
    [metric] = settings["metric_list"]
    options = _but(metric, METRIC)
    stops = settings["generation_kwargs"]["until"]

    def right(cases: Sequence[Case]) -> list[bool]:
        answers: Any = [[_until(stops, case.text)] for case in cases]
        rows = [{"choices": case.choices} for case in cases]
        for step in steps:
            answers = step.apply(answers, rows)
        scores = (
            exact_match_fn(predictions=[answer], references=[target.format(gold=case.gold)], **options)
            for case, answer in zip(cases, answers, strict=True)
        )
        return [score["exact_match"] == 1 for score in scores]

    return right


def _until(stops: Sequence[str], text: str) -> str:
    for stop in stops:
        text = text.split(stop, maxsplit=1)[0]
    return text


def _but(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def solved(case: Case) -> dict[str, str]:
    """The row of MATH that has this gold."""
    boxed = f"\\boxed{{{case.gold}}}"
    return {"problem": "?", "solution": f"${boxed}$", "answer": case.gold}


def hendrycks(case: Case) -> bool:
    return grade_hendrycks(solved(case), [case.text])["exact_match"] == 1


def minerva() -> dict[str, Grader]:
    """The grader of Minerva's task, which can be imported beside one version of ANTLR only; else nothing."""
    try:
        from lm_eval.tasks.minerva_math import utils
    except (AssertionError, ModuleNotFoundError):
        return {}

    def right(case: Case) -> bool:
        row = solved(case) | {"answer": utils.normalize_final_answer(case.gold)}
        return utils.process_results(row, [case.text])["exact_match"] == 1

    return {"minerva_math": each(right)}


# ---- math-verify ----


def math_verify(case: Case) -> bool:
    return verify(parse(f"${case.gold}$"), parse(case.text))


OTHERS: Mapping[str, Mapping[str, Grader]] = {
    "letters": {
        "mmlu_pro custom-extract": harness("mmlu_pro/_default_template_yaml", "custom-extract"),
        "mmlu_pro_llama strict": harness("llama3/instruct/mmlu_pro/_default_template_yaml", "strict_match"),
        "mmlu_flan_cot strict": harness(
            "mmlu/flan_cot_zeroshot/_mmlu_flan_cot_zeroshot_template_yaml", "strict-match", "({gold})"
        ),
        "mmlu_flan_cot flexible": harness(
            "mmlu/flan_cot_zeroshot/_mmlu_flan_cot_zeroshot_template_yaml", "flexible-extract", "({gold})"
        ),
        "arc_challenge_chat": harness("arc/arc_challenge_chat.yaml", "remove_whitespace"),
    },
    "numbers": {
        "gsm8k strict": harness("gsm8k/gsm8k.yaml", "strict-match", "#### {gold}"),
        "gsm8k_cot strict": harness("gsm8k/gsm8k-cot.yaml", "strict-match"),
        "gsm8k_llama strict": harness("llama3/instruct/gsm8k/gsm8k.yaml", "strict_match"),
        "gsm8k flexible": harness("gsm8k/gsm8k.yaml", "flexible-extract", "#### {gold}"),
        "math-verify": each(math_verify),
    },
    "math": {"hendrycks_math": each(hendrycks), **minerva(), "math-verify": each(math_verify)},
}


# ---- Tables ----


@dataclass
class Tally:
    """How a grader did on some cases."""

    missed: int = 0
    accepted: int = 0

    def __str__(self) -> str:
        return f"{self.missed} / {self.accepted}" if self.missed or self.accepted else "·"


def graders_of(cases: Sequence[Case]) -> Mapping[str, Grader]:
    kind = "letters" if cases[0].choices else "math" if cases[0].task == "math" else "numbers"
    return {"ours, strict": ours("extract"), "ours, flexible": ours("flexible"), **OTHERS[kind]}


def table(cases: Sequence[Case]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: by fault, how many cases each grader gets wrong; the last row has all cases.

    Nobody else has a word for "undecided": to accept such a case is no fault of theirs.
    """
    tallies: dict[str, dict[str, Tally]] = defaultdict(lambda: defaultdict(Tally))
    counts = Counter(case.fault for case in cases) + Counter({"all": len(cases)})
    graders = graders_of(cases)
    for name, grader in graders.items():
        for case, told in zip(cases, grader(cases), strict=True):
            right = case.verdict == "right"
            for fault in (case.fault, "all"):
                tallies[fault][name].missed += right and not told
                tallies[fault][name].accepted += told and not right and case.verdict != "undecided"
    faults = [*sorted(counts.keys() - {"all"}), "all"]
    rows = [[fault, str(counts[fault]), *(str(tallies[fault][name]) for name in graders)] for fault in faults]
    return ["fault", "cases", *graders], rows


def markdown(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---", *["--:"] * (len(headings) - 1)], *rows]
    return "\n".join([f"### {title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path, help="a file to write the tables to, for docs/grading.md")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # math-verify tells of every text that it cannot read
    print(f"lm-eval {version('lm-eval')}, math-verify {version('math-verify')}; a cell: missed / accepted")
    pages = []
    for path in sorted(CASES.glob("*.jsonl")):
        cases = read_cases(path)
        headings, rows = table(cases)
        print_table(path.stem, headings, [*rows[:-1], None, rows[-1]])
        pages.append(markdown(path.stem, headings, rows))
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(pages), encoding="utf-8")


if __name__ == "__main__":
    main()
