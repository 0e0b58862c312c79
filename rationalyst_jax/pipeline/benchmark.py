"""A benchmark: every task with every checkpoint and approach, on the same questions, in one run that resumes.

Each cell is solved by the stage `reason`, and graded by `evaluate`, as the commands of their names do it.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from rationalyst_jax.evaluate.statistics import holm
from rationalyst_jax.files.lock import Busy
from rationalyst_jax.files.parts import ALONE, HostShard, OthersAtWork, Waiting, is_in_parts
from rationalyst_jax.files.whole import file_name, write_json
from rationalyst_jax.pipeline.approach import Approach
from rationalyst_jax.pipeline.benchmark_config import BenchmarkConfig, Contestant
from rationalyst_jax.pipeline.budget import affordable, share_of_budget
from rationalyst_jax.pipeline.evaluate import evaluate
from rationalyst_jax.pipeline.models import Models, address_of
from rationalyst_jax.pipeline.reason import Cast, ReasonSummary, reason
from rationalyst_jax.pipeline.report import PAGE, report_run, write_inputs
from rationalyst_jax.pipeline.run_dir import RunDir
from rationalyst_jax.prompts.prompt import load_demonstrations, load_prompts
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


def run(
    config: BenchmarkConfig, *, only: Sequence[str] | None, shard: HostShard = ALONE, console: Console
) -> dict[str, Any]:
    """Runs (or continues) a benchmark in its run directory and returns what `summary.json` there holds.

    only: names of tasks to work on now; the others' cells are left for another call. shard: the part of each
    cell's questions that is this process's (`files/parts.py`); where others are still at work it raises
    OthersAtWork, and the last one to finish does what is left. Raises ValueError for bad input, for a run
    directory made with other settings or questions, and while another process is at work in it.
    """
    for name in only or ():
        if name not in config.tasks:
            raise ValueError(f"benchmark: task {name!r} is not among {', '.join(config.tasks)}")
    with Models(config.engine, config.endpoint) as models:
        benchmark = Benchmark(config, models, console)
        run_dir = RunDir(benchmark.path, benchmark.settings(), console)
        tasks = only or list(config.tasks)
        if shard == ALONE:
            with run_dir:
                return _run(benchmark, run_dir, tasks)
        run_dir.check()
        _solve_parts(benchmark, run_dir, tasks, shard)
        try:
            with run_dir:
                return _run(benchmark, run_dir, tasks)
        except Busy:
            raise OthersAtWork(f"shard {shard} is done, and another one ends {run_dir.path}") from None


def _solve_parts(benchmark: "Benchmark", run_dir: RunDir, only: Sequence[str], shard: HostShard) -> None:
    """Solves this process's part of every cell. Raises OthersAtWork where cells are not complete then."""
    inputs = _checked_inputs(benchmark, run_dir, only)
    for stage, cell, sample in benchmark.in_order(only):
        if not run_dir.is_done(stage):
            benchmark.console.rule(f"[bold]{escape(stage)}, shard {shard}", align="left", style="dim")
            with suppress(OthersAtWork):
                benchmark.solve(cell, sample, inputs[cell.task], shard)
    # What others have completed meanwhile counts: so for the last one to finish all is there.
    paths = [benchmark.traces_path(cell, sample) for _, cell, sample in benchmark.in_order(only)]
    if left := [path for path in paths if is_in_parts(path)]:
        raise OthersAtWork(
            f"shard {shard} is done, others have {len(left)} files of traces to finish: "
            f"the last one ends {run_dir.path}"
        )


def _run(benchmark: "Benchmark", run_dir: RunDir, only: Sequence[str]) -> dict[str, Any]:
    config = benchmark.config
    console = benchmark.console

    inputs = _checked_inputs(benchmark, run_dir, only)
    write_inputs(run_dir.path, {name: its.questions for name, its in config.tasks.items()})
    for stage, cell, sample in benchmark.in_order(only):
        run_dir.stage(stage, partial(benchmark.solve, cell, sample, inputs[cell.task]))

    # ---- What is left to look at ----
    tasks = {
        name: benchmark.evaluate(name)
        for name in config.tasks
        if all(map(run_dir.is_done, benchmark.stages(name)))
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
    report_run(run_dir.path, run_dir.path / PAGE)
    console.print(f"all of it in {run_dir.path}/summary.json, accuracy.png", markup=False)
    console.print(f"open {run_dir.path / PAGE} in a browser", markup=False, soft_wrap=True, highlight=False)
    return summary


def _checked_inputs(
    benchmark: "Benchmark", run_dir: RunDir, only: Sequence[str]
) -> dict[str, dict[str, str]]:
    """The fingerprints of each task's files. What was solved before must have been solved from the same."""
    config = benchmark.config
    stages = {name: benchmark.stages(name) for name in config.tasks}
    inputs = {
        name: benchmark.inputs(name)
        for name in config.tasks
        if name in only or any(map(run_dir.is_done, stages[name]))
    }
    for name, found in inputs.items():
        for stage in filter(run_dir.is_done, stages[name]):
            for key, digest in run_dir.result(stage)["inputs"].items():
                if digest != found[key]:
                    raise ValueError(
                        f"{getattr(config.tasks[name], key)}: has changed since {run_dir.path} was begun; "
                        "put it back, or begin elsewhere"
                    )
    return inputs


def _correct_family(tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds to every comparison `p_holm`, its p-value after Holm's correction over all pairs compared.

    Two baselines are compared with each other twice, with one p-value: they are one pair.
    """
    pairs: dict[tuple[str, str, frozenset[str]], list[dict[str, Any]]] = {}
    for task, rows in tasks.items():
        for cell in rows["cells"].values():
            for baseline, versus in cell["versus"].items():
                both = frozenset((cell["approach"], baseline))
                pairs.setdefault((task, cell["checkpoint"], both), []).append(versus)
    adjusted = holm([same[0]["p"] for same in pairs.values()])
    for same, p in zip(pairs.values(), adjusted, strict=True):
        for versus in same:
            versus["p_holm"] = p


class Benchmark:
    """The cells of a benchmark. What is wrong with its settings is found when it is made."""

    def __init__(self, config: BenchmarkConfig, models: Models, console: Console):
        self.config = config
        self.tasks = {name: task_named(name) for name in config.tasks}
        self.models = models
        self.console = console
        self.path = Path(config.run_dir)
        sets = {name: its.prompts or config.prompts for name, its in config.tasks.items()}
        self.prompts = {name: load_prompts(file) for name, file in sets.items()}
        for name, approach in config.approaches.items():
            try:
                check_strategy(self.reason_config(approach, 0), has_rationalyst=True)
                approach.check_scoring(config.reason)
            except ValueError as error:
                raise ValueError(f"benchmark: approach {name!r}: {error}") from None
            for checkpoint, contestant in config.checkpoints.items():
                if approach.budget_of is not None and any(map(address_of, contestant.places)):
                    raise ValueError(
                        f"benchmark: approach {name!r} wants the FLOPs of {approach.budget_of!r}, which an "
                        f"endpoint, as checkpoint {checkpoint!r} has one, does not tell"
                    )
        for task in config.tasks:
            cells: dict[str, Cell] = {}
            for cell in self.cells(task):
                if (other := cells.setdefault(file_name(cell.row), cell)) != cell:
                    raise ValueError(f"benchmark: {other.row!r} and {cell.row!r} would share their files")

    def cells(self, task: str) -> list[Cell]:
        checkpoints = self.config.checkpoints.items()
        return [
            Cell(task, name, approach) for name, models in checkpoints for approach in self.approaches(models)
        ]

    def stages(self, task: str) -> dict[str, tuple[Cell, int]]:
        """The stages of a task by their names: each cell once for every sample."""
        return {
            f"solve {task}, {cell.row}, sample {sample}": (cell, sample)
            for cell in self.cells(task)
            for sample in range(self.config.samples)
        }

    def in_order(self, tasks: Sequence[str]) -> list[tuple[str, Cell, int]]:
        """The stages of tasks, cell and sample of each, one checkpoint after the other: to open one may take
        minutes."""
        places = list(self.config.checkpoints)
        stages = [(stage, *cell) for task in tasks for stage, cell in self.stages(task).items()]
        return sorted(stages, key=lambda stage: places.index(stage[1].checkpoint))

    def inputs(self, task: str) -> dict[str, str]:
        """Fingerprints of the files of a task, by their keys in its settings."""
        its = self.config.tasks[task]
        found = {"questions": questions_digest(self.tasks[task], its.questions)}
        if its.shots_from is not None:
            split = self.tasks[task].references[0]
            found["shots_from"] = questions_digest(self.tasks[task], its.shots_from, split)
        return found

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
        """All that decides the results, as JSON values; the files of tasks are compared cell by cell."""
        config = asdict(self.config)
        for key in ("run_dir", "baselines"):  # a run may be moved, and looked at in other ways
            del config[key]
        for its in config["tasks"].values():  # as may its input
            its["questions"] = None
            its["shots_from"] = its["shots_from"] is not None
        for key in ("concurrency", "retries"):  # how an endpoint is asked changes no answer
            del config["endpoint"][key]
        places = {place for models in self.config.checkpoints.values() for place in models.places}
        names = {place: self.models.known(place).name for place in sorted(places)}
        versions = {
            name: prompts.shown(load_demonstrations(self.tasks[name].demonstrations)).version
            for name, prompts in self.prompts.items()
        }
        return config | {"models": names, "prompts": versions}

    def traces_path(self, cell: Cell, sample: int) -> Path:
        folder = self.path / "traces" / file_name(cell.checkpoint) / cell.task
        if sample > 0:
            folder /= f"sample {sample}"
        return folder / f"{file_name(cell.approach)}.jsonl"

    # ---- Stages ----

    def solve(
        self,
        cell: Cell,
        sample: int,
        inputs: Mapping[str, str],
        shard: HostShard = ALONE,
        wait: Waiting | None = None,
    ) -> dict[str, Any]:
        """Solves the questions of one cell once, or a shard's part of them; `inputs` are the fingerprints of
        its files. Raises as `reason`."""
        approach = self.config.approaches[cell.approach]
        config = self.reason_config(approach, sample)
        out = self.traces_path(cell, sample)
        found: dict[str, Any] = {"inputs": dict(inputs)}
        if approach.budget_of is not None:
            model_cell = replace(cell, approach=approach.budget_of)
            model = self.traces_path(model_cell, sample)
            # Who is behind may be at work on an earlier cell.
            waiting = Waiting(self._note, self.path)
            if shard != ALONE:
                self.solve(model_cell, sample, inputs, shard, waiting)
            config = affordable(config, partial(self._reason, cell, shard=shard, wait=waiting), out, model)
        with track(self.console, f"{cell.task}, {cell.row}") as progress:
            options: dict[str, Any] = {"shard": shard, "wait": wait, "progress": progress}
            found |= asdict(self._reason(cell, config, out, self.config.limit, **options))
        if approach.budget_of is not None:
            share = share_of_budget(out, model)
            took = f"{share:.0%} of the FLOPs of {approach.budget_of}"
            self.console.print(f"{config.candidates} candidates took {took}", markup=False)
            found |= {"candidates": config.candidates, "share_of_budget": share}
        return found

    def _note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

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
        found = {}
        for checkpoint in self.config.checkpoints:
            own = {cell.approach: cell for cell in cells if cell.checkpoint == checkpoint}
            graded = evaluate(
                task,
                self.config.tasks[name].questions,
                {approach: paths[cell] for approach, cell in own.items()},
                [approach for approach in self.config.baselines if approach in own],
                limit=self.config.limit,
            )
            for approach, cell in own.items():
                traces = [trace for path in paths[cell] for trace in read_traces(path)]
                found[cell.row] = {
                    "checkpoint": checkpoint,
                    "approach": approach,
                    "strict": asdict(graded[approach].accuracy),
                    "flexible": asdict(graded[approach].flexible),
                    "versus": {baseline: asdict(c) for baseline, c in graded[approach].versus.items()},
                    "ledger": mean_ledger(traces),
                }
        return {"title": task.title, "paper": task.paper and asdict(task.paper), "cells": found}
