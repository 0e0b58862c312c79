"""The stage `report`: a run, or files of traces, as one page that a browser opens without a network.

The page has the tables that the terminal showed, plots, every question with its traces, and every document
with its rationales. What it says of a run is read from `summary.json`; which questions are right is graded
anew.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rationalyst_jax.evaluate.grade import as_family, compare, summarize
from rationalyst_jax.files.prepared import Source, is_prepared
from rationalyst_jax.files.whole import file_name, read_json, write_json
from rationalyst_jax.pipeline.page import Page, read_solved, text_digest
from rationalyst_jax.pipeline.run_dir import read_summary
from rationalyst_jax.reason.traces import Trace, mean_ledger
from rationalyst_jax.report.benchmark import benchmark_table, paper_table
from rationalyst_jax.report.grades import compared_table, grades_table
from rationalyst_jax.report.tables import accuracy_table, ledger_table, rounds_table, training_table
from rationalyst_jax.tasks.benchmarks import task_named
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.sources import read_questions
from rationalyst_jax.tasks.task import Task

PAGE = "report.html"
INPUTS = "inputs.json"


def write_inputs(run: Path, questions: Mapping[str, Source]) -> None:
    """Leaves in a run directory where its questions are, by the names of their sets: its settings tell only
    what they are, because input may be moved."""
    places = {
        name: str(source if is_prepared(source) else Path(source).absolute())
        for name, source in questions.items()
    }
    write_json(run / INPUTS, {"questions": places})


def report_run(run: Path, out: Path) -> int:
    """Writes the page of a finished experiment or benchmark; gives its size in bytes.

    Raises FileNotFoundError for a folder that is none, and for questions that are no longer where they were;
    ValueError for questions that have other texts now, and for malformed files.
    """
    summary = read_summary(run)
    config = read_json(run / "experiment.config.json")
    page = Page(run.resolve().name)
    if "tasks" in summary:
        _add_benchmark(page, run, summary, config)
    else:
        _add_experiment(page, run, summary, config)
    page.main["versions"] = read_json(run / "versions.json")
    page.main["settings"] = list(_flat(config))
    return page.write(out)


def report_traces(
    task: Task, questions: Source, runs: Mapping[str, Sequence[Path]], out: Path, *, limit: int | None = None
) -> int:
    """Writes the page of traces on the first `limit` questions of a source (None: all); gives its size in
    bytes.

    runs: files of each run by its name; several are samples of the same questions. All are compared with the
    first. Raises ValueError for malformed files, and where traces and questions are not about the same ids.
    """
    page = Page(task.title)
    known = read_questions(task, questions)
    solved = page.add_set(task.title, task, known, runs, limit)
    accuracy = {
        name: (summarize(of.graded.strict), summarize(of.graded.flexible)) for name, of in solved.items()
    }
    page.add_table(grades_table(task, accuracy))
    first, *others = solved
    if others:
        against = solved[first].graded.strict
        compared = {name: compare(solved[name].graded.strict, against) for name in others}
        page.add_table(compared_table(first, as_family(compared)))
    ledgers = {name: mean_ledger(of.traces) for name, of in solved.items()}
    page.add_table(ledger_table("ledger, means of a question", ledgers))
    results = {name: {**asdict(accuracy[name][0]), "ledger": ledgers[name]} for name in solved}
    page.add_cost(task.title, results)
    return page.write(out)


def find_trace(file: Path, name: str, question: Question | None = None) -> Trace:
    """The trace of the question of that name, in a file or the files of a folder.

    Raises ValueError naming the file where there is none, and where `question` has another text now.
    """
    traces = read_solved(file, {name: None if question is None else text_digest(question)})
    if name not in traces:
        raise ValueError(f"{file}: has no trace of question {name!r}")
    return traces[name]


def find_question(task: Task, questions: Source, name: str) -> Question:
    """One question of a source; ValueError naming the source that lacks it."""
    for question in read_questions(task, questions):
        if question.id == name:
            return question
    raise ValueError(f"{questions}: has no question {name!r}")


# ---- What runs leave behind ----


def _add_experiment(page: Page, run: Path, summary: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    task = task_named(config["task"])
    results = {**summary["strategies"], **summary["ablations"]}
    for title in ("strategies", "ablations"):
        if of_table := summary[title]:
            named = [key.removeprefix("vs_") for key in next(iter(of_table.values())) if key[:3] == "vs_"]
            page.add_table(
                accuracy_table(title, of_table, (summary["baseline"],) if summary["baseline"] else named)
            )
    page.add_mining(run, summary["mining"])
    if len(summary["mining"]) > 1:
        page.add_table(rounds_table(summary["mining"]))
    if summary["training"]:
        page.add_table(training_table("training", summary["training"], config["train"]["batch_examples"]))
        page.add_losses({name: run / "train" / file_name(name) for name in summary["training"]})
    page.add_table(
        ledger_table("ledger, means of a question", {name: r["ledger"] for name, r in results.items()})
    )
    for name, curve in summary["curves"].items():
        page.add_curve(name, curve, results)
    runs = {**config["strategies"], **config["ablations"]}
    for questions in dict.fromkeys(runs[name]["questions"] for name in results):
        own = [name for name in results if runs[name]["questions"] == questions]
        page.add_cost(questions, {name: results[name] for name in own})
        traces = {name: [run / "reason" / f"{file_name(name)}.jsonl"] for name in own}
        source = run / "data" / f"{questions}.jsonl" if config["world"] else _inputs(run)[questions]
        page.add_set(questions, task, read_questions(task, source), traces)
    page.main["seconds"] = summary["seconds"]


def _add_benchmark(page: Page, run: Path, summary: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    for name, of_task in summary["tasks"].items():
        cells = of_task["cells"]
        baselines = dict.fromkeys(baseline for cell in cells.values() for baseline in cell["versus"])
        page.add_table(benchmark_table(of_task, list(baselines)))
        page.add_table(
            ledger_table("ledger, means of a question", {row: cell["ledger"] for row, cell in cells.items()})
        )
        results = {row: {**cell["strict"], "ledger": cell["ledger"]} for row, cell in cells.items()}
        page.add_cost(of_task["title"], results)
        traces = {}
        for row, cell in cells.items():
            folder = run / "traces" / file_name(cell["checkpoint"]) / name
            samples = [folder, *(folder / f"sample {n}" for n in range(1, summary["samples"]))]
            traces[row] = [sample / f"{file_name(cell['approach'])}.jsonl" for sample in samples]
        task = task_named(name)
        questions = read_questions(task, _inputs(run)[name])
        models = {row: cell["checkpoint"] for row, cell in cells.items()}
        page.add_set(of_task["title"], task, questions, traces, summary["limit"], models)
    if summary["tasks"]:
        page.add_table(paper_table(summary["tasks"]))


def _inputs(run: Path) -> Mapping[str, str]:
    return read_json(run / INPUTS)["questions"]


def _flat(config: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    """Settings by their dotted keys; those that nobody set are left out."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        elif value is not None:
            yield f"{above}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
