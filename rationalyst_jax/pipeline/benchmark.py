"""A benchmark: every task with every checkpoint and approach, on the same questions, in one run that resumes.

Each cell is solved by the stage `reason`, and graded by `evaluate`, as the commands of their names do it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from rationalyst_jax.evaluate.statistics import holm
from rationalyst_jax.files.whole import file_name, write_json
from rationalyst_jax.pipeline.approach import Approach
from rationalyst_jax.pipeline.benchmark_config import BenchmarkConfig, Contestant
from rationalyst_jax.pipeline.budget import affordable
from rationalyst_jax.pipeline.evaluate import Evaluation, evaluate
from rationalyst_jax.pipeline.models import Models
from rationalyst_jax.pipeline.reason import Cast, ReasonSummary, reason
from rationalyst_jax.pipeline.run_dir import RunDir
from rationalyst_jax.prompts.prompt import PromptSet, load_prompts
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.strategies import check_strategy, needs_rationalyst
from rationalyst_jax.reason.traces import mean_ledger, read_traces
from rationalyst_jax.report.benchmark import benchmark_table, paper_table
from rationalyst_jax.report.plots import accuracy_panels
from rationalyst_jax.report.progress import track
from rationalyst_jax.report.tables import ledger_table
from rationalyst_jax.tasks.benchmarks import task_named
from rationalyst_jax.tasks.sources import questions_digest


@dataclass(frozen=True)
class Cell:
    """One approach of one checkpoint on one task."""

    task: str
    checkpoint: str
    approach: str

    @property
    def row(self) -> str:
        """Its name among the cells of its task."""
        return f"{self.checkpoint}: {self.approach}"


def run(config: BenchmarkConfig, *, only: Sequence[str] | None, console: Console) -> dict[str, Any]:
    """Runs (or continues) a benchmark in its run directory and returns what `summary.json` there holds.

    only: names of tasks to work on now; the others' cells are left for another call. Raises ValueError for
    bad input, for a run directory made with other settings or questions, and while another process is at work
    in it.
    """
    for name in only or ():
        if name not in config.tasks:
            raise ValueError(f"benchmark: task {name!r} is not among {', '.join(config.tasks)}")
    with Models(config.engine, config.endpoint) as models:
        benchmark = Benchmark(config, models, console)
        with RunDir(benchmark.path, benchmark.settings(), console) as run_dir:
            return _run(benchmark, run_dir, only or list(config.tasks))


def _run(benchmark: "Benchmark", run_dir: RunDir, only: Sequence[str]) -> dict[str, Any]:
    config = benchmark.config
    console = benchmark.console

    # ---- Cells ----
    digests = {name: questions_digest(benchmark.tasks[name], config.tasks[name].questions) for name in only}
    stages = {stage: cell for name in only for stage, cell in benchmark.stages(name).items()}
    places = list(config.checkpoints)  # one checkpoint after the other: to open one may take minutes
    for stage, (cell, sample) in sorted(stages.items(), key=lambda item: places.index(item[1][0].checkpoint)):
        digest = digests[cell.task]
        solved = run_dir.stage(stage, partial(benchmark.solve, cell, sample, digest))
        if solved["questions"] != digest:
            source = config.tasks[cell.task].questions
            raise ValueError(
                f"{source}: has changed since {run_dir.path} was begun; put it back, or begin elsewhere"
            )

    # ---- What is left to look at ----
    tasks = {
        name: benchmark.evaluate(name)
        for name in config.tasks
        if all(run_dir.is_done(stage) for stage in benchmark.stages(name))
    }
    _correct_family(tasks)
    summary = {"limit": config.limit, "samples": config.samples, "tasks": tasks}
    write_json(run_dir.path / "summary.json", summary)
    charted = {
        rows["title"]: {row: cell["strict"] for row, cell in rows["cells"].items()} for rows in tasks.values()
    }
    if charted:
        accuracy_panels(charted, run_dir.path / "accuracy.png")
    for rows in tasks.values():
        console.print(benchmark_table(rows, config.baselines))
        console.print(
            ledger_table("ledger, means of a question", {r: c["ledger"] for r, c in rows["cells"].items()})
        )
    console.print(paper_table(tasks))
    console.print(f"all of it in {run_dir.path}/summary.json, accuracy.png")
    return summary


def _correct_family(tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds to every comparison its p-value after Holm's correction over all of them: `p_holm`."""
    compared = [
        versus
        for rows in tasks.values()
        for cell in rows["cells"].values()
        for versus in cell["versus"].values()
    ]
    for versus, p in zip(compared, holm([versus["p"] for versus in compared]), strict=True):
        versus["p_holm"] = p


class Benchmark:
    """The cells of a benchmark. What is wrong with the input is found when it is made."""

    def __init__(self, config: BenchmarkConfig, models: Models, console: Console):
        self.config = config
        self.tasks = {name: task_named(name) for name in config.tasks}
        self.models = models
        self.console = console
        self.path = Path(config.run_dir)
        self.prompts = {name: self._prompts(name) for name in config.tasks}
        for name, approach in config.approaches.items():
            try:
                check_strategy(self.reason_config(approach, 0), has_rationalyst=True)
                approach.check_scoring(config.reason)
            except ValueError as error:
                raise ValueError(f"benchmark: approach {name!r}: {error}") from None

    def _prompts(self, task: str) -> PromptSet:
        return load_prompts(self.config.tasks[task].prompts or self.config.prompts)

    def cells(self, task: str) -> list[Cell]:
        checkpoints = self.config.checkpoints.items()
        return [
            Cell(task, name, approach) for name, models in checkpoints for approach in self.approaches(models)
        ]

    def stages(self, task: str) -> dict[str, tuple[Cell, int]]:
        """The stages of a task by their names: each cell once for every sample."""
        return {
            " ".join(("solve", *vars(cell).values(), str(sample))): (cell, sample)
            for cell in self.cells(task)
            for sample in range(self.config.samples)
        }

    def approaches(self, models: Contestant) -> dict[str, Approach]:
        """The approaches that a checkpoint can do: without a RATIONALYST, those that need none."""
        kept: dict[str, Approach] = {}
        for name, approach in self.config.approaches.items():
            needs = needs_rationalyst(self.reason_config(approach, 0))
            model_for_budget = approach.budget_of is None or approach.budget_of in kept
            if model_for_budget and (models.rationalyst is not None or not needs):
                kept[name] = approach
        return kept

    def reason_config(self, approach: Approach, sample: int) -> ReasonConfig:
        return approach.applied(replace(self.config.reason, seed=self.config.reason.seed + sample))

    def settings(self) -> dict[str, Any]:
        """All that decides the results, as JSON values; files of questions are compared cell by cell."""
        config = asdict(self.config)
        for key in ("run_dir", "baselines", "endpoint"):  # a run may be moved and go on, by another road
            del config[key]
        for questions in config["tasks"].values():  # as may its input
            del questions["questions"]
        places = {
            place
            for models in self.config.checkpoints.values()
            for place in (models.agent, models.rationalyst, models.scorer)
            if place is not None
        }
        names = {place: self.models.known(place).name for place in sorted(places)}
        return config | {"models": names, "prompts": {name: p.version for name, p in self.prompts.items()}}

    def traces_path(self, cell: Cell, sample: int) -> Path:
        name = cell.approach if sample == 0 else f"{cell.approach} sample {sample}"
        return self.path / "traces" / file_name(cell.checkpoint) / cell.task / f"{file_name(name)}.jsonl"

    # ---- Stages ----

    def solve(self, cell: Cell, sample: int, questions: str) -> dict[str, Any]:
        """Solves the questions of one cell once; `questions` is their fingerprint."""
        approach = self.config.approaches[cell.approach]
        config = self.reason_config(approach, sample)
        out = self.traces_path(cell, sample)
        if approach.budget_of is not None:
            model = self.traces_path(replace(cell, approach=approach.budget_of), sample)
            pilot = partial(self._reason, cell, config)
            candidates = affordable(config.candidates, pilot, out, model)
            config = replace(config, candidates=candidates)
            self.console.print(f"{candidates} candidates take what {approach.budget_of} takes")
        with track(self.console, f"{cell.task}, {cell.row}") as progress:
            summary = self._reason(cell, config, out, self.config.limit, progress=progress)
        return {**asdict(summary), "questions": questions, "candidates": config.candidates}

    def _reason(
        self, cell: Cell, config: ReasonConfig, out: Path, limit: int | None, **options: Any
    ) -> ReasonSummary:
        models = self.config.checkpoints[cell.checkpoint]
        if self.config.limit is not None:
            limit = min(limit or self.config.limit, self.config.limit)
        return reason(
            self.config.tasks[cell.task].questions,
            self.tasks[cell.task],
            Cast(models.agent, models.rationalyst, models.scorer),
            self.models,
            self.prompts[cell.task],
            config,
            out,
            limit=limit,
            shots_from=self.config.tasks[cell.task].shots_from,
            **options,
        )

    def evaluate(self, name: str) -> dict[str, Any]:
        """The graded cells of a task, each compared with the baselines of its checkpoint."""
        task = self.tasks[name]
        cells = self.cells(name)
        paths = {
            cell: [self.traces_path(cell, sample) for sample in range(self.config.samples)] for cell in cells
        }
        baselines = [cell for cell in cells if cell.approach in self.config.baselines]
        graded = evaluate(
            task,
            self.config.tasks[name].questions,
            {cell.row: paths[cell] for cell in cells},
            [cell.row for cell in baselines],
            limit=self.config.limit,
        )
        found = {}
        for cell in cells:
            own = {b.row: b.approach for b in baselines if b.checkpoint == cell.checkpoint}
            traces = [trace for path in paths[cell] for trace in read_traces(path)]
            found[cell.row] = _as_json(graded[cell.row], own) | {"ledger": mean_ledger(traces)}
        return {"title": task.title, "paper": task.paper and asdict(task.paper), "cells": found}


def _as_json(result: Evaluation, baselines: Mapping[str, str]) -> dict[str, Any]:
    """The results of a cell as JSON values; compared with its own checkpoint's baselines, by their names."""
    versus = {baselines[row]: asdict(c) for row, c in result.versus.items() if row in baselines}
    return {
        "strict": asdict(result.accuracy),
        "flexible": asdict(result.flexible),
        "versus": versus,
    }
