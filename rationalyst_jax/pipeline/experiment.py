"""The whole method, stage after stage: documents → rationales → RATIONALYST → trajectories → accuracy.

Each stage is the function that the command of its name calls, so an experiment gives what the commands give.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from rationalyst_jax.files.prepared import Source
from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.files.settings import file_digest
from rationalyst_jax.files.whole import file_name, write_json
from rationalyst_jax.lm.devices.sharding import mesh_of
from rationalyst_jax.lm.weights.tokenizer import marker_ids
from rationalyst_jax.mine.config import AnnotateConfig, FilterConfig
from rationalyst_jax.mine.documents import Document, read_documents
from rationalyst_jax.pipeline.budget import affordable, share_of_budget
from rationalyst_jax.pipeline.config import ExperimentConfig, Rationalyst, Run
from rationalyst_jax.pipeline.evaluate import evaluate
from rationalyst_jax.pipeline.filter import decide_again, filter_rationales, mesh_for
from rationalyst_jax.pipeline.mine import mine
from rationalyst_jax.pipeline.models import Models, Place
from rationalyst_jax.pipeline.reason import Cast, ReasonSummary, reason
from rationalyst_jax.pipeline.report import PAGE, report_run, write_inputs
from rationalyst_jax.pipeline.run_dir import RunDir
from rationalyst_jax.pipeline.train import train
from rationalyst_jax.prompts.prompt import load_demonstrations, load_prompts
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.strategies import check_strategy, prompts_of
from rationalyst_jax.report.plots import accuracy_chart, accuracy_curve
from rationalyst_jax.report.progress import track, track_steps
from rationalyst_jax.report.tables import (
    accuracy_table,
    counts_table,
    ledger_table,
    rounds_table,
    training_table,
    usage_counts,
)
from rationalyst_jax.tasks.benchmarks import task_named
from rationalyst_jax.tasks.sources import questions_digest, read_questions
from rationalyst_jax.world.corpus import QUESTION_SETS, documents, questions

BASELINES = ("random", "likelihood")  # strategies that every run is compared with


def run(config: ExperimentConfig, *, full: bool, console: Console) -> dict[str, Any]:
    """Runs (or continues) an experiment in its run directory and returns what `summary.json` there holds.

    Without `full`, runs marked `full` are left out. Raises ValueError for bad input, for a run directory made
    with other settings or input files, and while another process is at work in it.
    """
    # What is wrong with the input is found before anything is written.
    with Models(config.engine) as models:
        experiment = Experiment(config, models, console)
        with RunDir(experiment.path, experiment.settings(), console) as run_dir:
            return _run(experiment, run_dir, full)


def _run(experiment: "Experiment", run_dir: RunDir, full: bool) -> dict[str, Any]:
    config = experiment.config
    console = experiment.console
    strategies, ablations = (
        {name: r for name, r in runs.items() if full or not r.full}
        for runs in (config.strategies, config.ablations)
    )
    runs = {**strategies, **ablations}
    wanted = dict.fromkeys(r.rationalyst for r in runs.values() if r.rationalyst is not None)

    # ---- Stages ----
    stages = []

    def stage(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        stages.append(name)
        return run_dir.stage(name, work)

    training = {}

    def train(name: str) -> None:
        if config.rationalysts[name].train and name not in training:
            training[name] = stage(f"train {name}", partial(experiment.train, name))

    write_inputs(run_dir.path, config.questions)
    stage("data", experiment.make_data)
    mining = []
    for number in experiment.rounds:
        if number > 1:
            train(config.rounds[number - 2])
        of_round = f" round {number}" if number > 1 else ""
        mined = stage(f"mine{of_round}", partial(experiment.mine, number))
        filtered = stage(f"filter{of_round}", partial(experiment.filter, number))
        mining.append({**mined, **filtered})
    for name in wanted:
        train(name)
    ledgers = {}
    for name, its_run in runs.items():
        solved = stage(f"reason {name}", partial(experiment.reason, name, its_run))
        ledgers[name] = solved["ledger"]
    results = experiment.evaluate(runs, ledgers)

    # ---- What is left to look at ----
    summary = {
        "seed": config.seed,
        "strategies": {name: results[name] for name in strategies},
        "mining": mining,
        "training": training,
        "ablations": {name: results[name] for name in ablations},
        "baseline": config.baseline,
        "curves": {name: asdict(curve) for name, curve in config.curves.items()},
        "seconds": {stage: run_dir.seconds(stage) for stage in stages},
    }
    write_json(run_dir.path / "summary.json", summary)
    pictures = experiment.draw(results)
    report_run(run_dir.path, run_dir.path / PAGE)
    against = BASELINES if config.baseline is None else (config.baseline,)
    for title in ("strategies", "ablations"):
        if summary[title]:
            console.print(accuracy_table(title, summary[title], against))
    if config.rounds:
        console.print(rounds_table(mining))
    if training:
        console.print(training_table("training", training, config.train.batch_examples))
    console.print(ledger_table("ledger, means of a question", ledgers))
    console.print(
        f"{sum(summary['seconds'].values()):.0f} s; all of it in {run_dir.path}/summary.json, "
        f"{', '.join(pictures)}",
        markup=False,
        highlight=False,
    )
    console.print(f"open {run_dir.path / PAGE} in a browser", markup=False, soft_wrap=True, highlight=False)
    return summary


class Experiment:
    """The stages of one experiment. Each reads files, writes files, and returns a small JSON value."""

    def __init__(self, config: ExperimentConfig, models: Models, console: Console):
        self.config = config
        self.models = models
        self.console = console
        self.path = Path(config.run_dir)
        self.task = task_named(config.task)
        self.prompts = load_prompts(config.prompts)
        self.shown = self.prompts.shown(load_demonstrations(self.task.demonstrations))
        base = models.checkpoint(config.model)
        self.rounds = range(1, 2 + len(config.rounds))
        asked = {prompt for number in self.rounds for prompt in self.annotator(number)[1].prompts}
        needed = (*sorted(asked), "follow", "follow_guided", "rationale", "step")
        models.check(config.model, self.shown, needed)
        base.check(mesh_of(config.train.mesh, jax.devices()))
        mesh_for(config.filter, config.mesh)
        markers = (*config.annotate.suppress, *config.filter.suppress, *config.reason.suppress)
        marker_ids(base.tokenizer, markers)
        for name, rationalyst in config.rationalysts.items():
            try:
                self.filter_config(rationalyst)
            except ValueError as error:
                raise ValueError(f"experiment: rationalyst {name!r}: {error}") from None
        known = QUESTION_SETS if config.world else config.questions
        for name, wanted in {**config.strategies, **config.ablations}.items():
            try:
                check_strategy(self.reason_config(wanted), has_rationalyst=wanted.rationalyst is not None)
                wanted.check_scoring(config.reason)
            except ValueError as error:
                raise ValueError(f"experiment: run {name!r}: {error}") from None
            if wanted.scorer != "agent" and "scorer" not in prompts_of(self.reason_config(wanted)):
                raise ValueError(f"experiment: run {name!r} asks no scorer, its scorer changes nothing")
            if wanted.questions not in known:
                sets = ", ".join(known)
                raise ValueError(f"experiment: run {name!r} wants questions {wanted.questions!r} of {sets}")

    def reason_config(self, run: Run) -> ReasonConfig:
        return run.applied(self.config.reason)

    def filter_config(self, rationalyst: Rationalyst) -> FilterConfig:
        own: dict[str, Any] = {"keep": rationalyst.keep}
        if rationalyst.tau is not None:
            own |= {"tau": rationalyst.tau, "tau_by_source": {}}
        if rationalyst.share is not None:
            own["share"] = rationalyst.share
        return replace(self.config.filter, **own)

    def settings(self) -> dict[str, Any]:
        """All that decides the results, as JSON values: the config, and fingerprints of what it names."""
        config = asdict(self.config)
        documents = self.config.documents
        del config["run_dir"]  # a run may be moved and go on, as may its input
        del config["baseline"], config["curves"]  # these only say how results are looked at
        return config | {
            "model": self.models.checkpoint(self.config.model).fingerprint,
            "prompts": self.shown.version,
            "documents": file_digest(Path(documents)) if documents else None,
            "questions": {
                name: questions_digest(self.task, source) for name, source in self.config.questions.items()
            },
        }

    # ---- Where things are ----

    def documents_path(self) -> Path:
        return Path(self.config.documents or self.path / "data" / "documents.jsonl")

    def round_documents(self, number: int) -> Path:
        return self.path / "data" / f"round-{number}.jsonl" if self.config.rounds else self.documents_path()

    def mine_dir(self, number: int) -> Path:
        return self.path / "mine" / f"round-{number}" if self.config.rounds else self.path / "mine"

    def questions_source(self, name: str) -> Source:
        return self.world_questions(name) if self.config.world else self.config.questions[name]

    def world_questions(self, name: str) -> Path:
        return self.path / "data" / f"{name}.jsonl"

    def rationales_path(self, name: str) -> Path:
        """What a RATIONALYST is trained on: a file, or a folder with one of each round."""
        if self.config.rounds:
            return self.path / "mine" / "learned" / file_name(name)
        return self.path / "mine" / f"{file_name(name)}.parquet"

    def train_dir(self, name: str) -> Path:
        return self.path / "train" / file_name(name)

    def traces_path(self, name: str) -> Path:
        return self.path / "reason" / f"{file_name(name)}.jsonl"

    # ---- Stages ----

    def make_data(self) -> dict[str, int]:
        """Checks the input files, or has the world generate them."""
        if self.config.world:
            world = self.config.world
            seed = self.config.seed
            write_rows(self.documents_path(), documents(seed, world.documents))
            for name in QUESTION_SETS:
                write_rows(self.world_questions(name), questions(seed, world.questions, name))
        names = QUESTION_SETS if self.config.world else self.config.questions
        counts = {name: len(read_questions(self.task, self.questions_source(name))) for name in names}
        found = read_documents(self.documents_path())
        if self.config.rounds:
            self._divide(found)
        return {"documents": len(found), **counts}

    def _divide(self, documents: Sequence[Document]) -> None:
        """Gives each round documents of its own, in their order."""
        rounds = len(self.rounds)
        if len(documents) < rounds:
            raise ValueError(f"experiment: {len(documents)} documents are too few for {rounds} rounds")
        ends = [len(documents) * number // rounds for number in (0, *self.rounds)]
        for number in self.rounds:
            of_round = documents[ends[number - 1] : ends[number]]
            write_rows(self.round_documents(number), map(asdict, of_round))

    def annotator(self, number: int) -> tuple[Place, AnnotateConfig]:
        """Who mines a round, and how."""
        config = self.config
        if number == 1 or not config.rationalysts[config.rounds[number - 2]].train:
            return config.model, config.annotate
        return self.train_dir(config.rounds[number - 2]) / "hf", replace(config.annotate, prompt="rationale")

    def mine(self, number: int) -> dict[str, Any]:
        """Mines one round."""
        model, how = self.annotator(number)
        with track(self.console, "documents annotated") as progress:
            summary, usage = mine(
                self.round_documents(number),
                model,
                self.models,
                self.prompts,
                how,
                self.mine_dir(number),
                round=number,
                progress=progress,
            )
        counts = {key: value for key, value in asdict(summary).items() if not isinstance(value, Mapping)}
        counts |= {f"  {name}": count for name, count in summary.document_outcomes.items()}
        counts |= usage_counts(usage)
        self.console.print(counts_table("mined", counts))
        return asdict(summary) | {"generated": usage.generated, "flops": usage.flops}

    def filter(self, number: int) -> dict[str, Any]:
        """Scores every triple of a round once, and writes what each RATIONALYST learns from."""
        config = self.config.filter
        scored = self.mine_dir(number) / "filtered.parquet"
        with track(self.console, "rationales scored") as progress:
            summary, _ = filter_rationales(
                self.mine_dir(number) / "triples.parquet",
                self.config.model,
                self.models,
                self.prompts,
                config,
                scored,
                mesh=self.config.mesh,
                progress=progress,
                note=lambda text: self.console.print(text, style="yellow", markup=False),
            )
        for name, rationalyst in self.config.rationalysts.items():
            if rationalyst.train and number <= (rationalyst.rounds or len(self.rounds)):
                out = self.rationales_path(name)
                if self.config.rounds:
                    out /= f"round-{number:02}.parquet"
                decide_again(scored, self.filter_config(rationalyst), out)
        counts = {"rationales": summary.rationales, "kept": summary.kept, **summary.reasons}
        self.console.print(counts_table("filtered", counts))
        gains = {str(q): gain for q, gain in summary.gains.items()}
        return {"kept": summary.kept, "reasons": summary.reasons, "gains": gains}

    def train(self, name: str) -> dict[str, Any]:
        """Fine-tunes the base model on the rationales of one RATIONALYST and exports it."""
        with track_steps(self.console) as (progress, note):
            summary = train(
                self.rationales_path(name),
                self.config.model,
                self.models,
                self.prompts,
                self.config.train,
                self.train_dir(name),
                progress=progress,
                note=note,
            )
        counts = {
            "rationales": summary.rationales + summary.validation + summary.too_long,
            "steps": summary.steps,
            "passes": summary.steps * self.config.train.batch_examples / summary.rationales,
            "loss": summary.metrics["loss"],
        }
        if "val_loss" in summary.metrics:
            counts["validation loss"] = summary.metrics["val_loss"]
        counts["tokens separate / in trees"] = summary.tokens / summary.tree_tokens
        self.console.print(counts_table(f"trained {name}", counts))
        return counts

    def reason(self, name: str, run: Run) -> dict[str, Any]:
        config = self.reason_config(run)
        out = self.traces_path(name)
        model = None if run.budget_of is None else self.traces_path(run.budget_of)
        if model is not None:
            config = affordable(config, lambda c, path, n: self.solve(run, c, path, limit=n), out, model)
        with track(self.console, f"questions ({name})") as progress:
            solved = asdict(self.solve(run, config, out, progress=progress))
        if model is None:
            return solved
        share = share_of_budget(out, model)
        took = f"{share:.0%} of the FLOPs of {run.budget_of}"
        self.console.print(f"{config.candidates} candidates took {took}", markup=False)
        return solved | {"candidates": config.candidates, "share_of_budget": share}

    def solve(self, run: Run, config: ReasonConfig, out: Path, **options: Any) -> ReasonSummary:
        rationalyst: Place | None = None
        if run.rationalyst is not None:
            trained = self.config.rationalysts[run.rationalyst].train
            rationalyst = self.train_dir(run.rationalyst) / "hf" if trained else self.config.model
        file = self.questions_source(run.questions)
        cast = Cast(self.config.model, rationalyst, rationalyst if run.scorer == "rationalyst" else None)
        return reason(file, self.task, cast, self.models, self.prompts, config, out, **options)

    def evaluate(
        self, runs: Mapping[str, Run], ledgers: Mapping[str, Mapping[str, float]]
    ) -> dict[str, dict[str, Any]]:
        """Each run's accuracy with interval, ledger per question, and paired comparisons with the baselines
        on the same questions."""
        results: dict[str, dict[str, Any]] = {}
        for file in dict.fromkeys(r.questions for r in runs.values()):
            own = {name: r for name, r in runs.items() if r.questions == file}
            first = {r.strategy: name for name, r in reversed(own.items()) if r.strategy in BASELINES}
            against = {f"vs_{strategy}": first.get(strategy, "") for strategy in BASELINES}
            if self.config.baseline is not None:
                against[f"vs_{self.config.baseline}"] = self.config.baseline
            traces = {name: [self.traces_path(name)] for name in own}
            baselines = [name for name in dict.fromkeys(against.values()) if name in own]
            graded = evaluate(self.task, self.questions_source(file), traces, baselines)
            for name, result in graded.items():
                results[name] = {**asdict(result.accuracy), "ledger": ledgers[name]}
                for key, baseline in against.items():
                    compared = result.versus.get(baseline)
                    results[name][key] = compared and asdict(compared)
        return {name: results[name] for name in runs}

    def draw(self, results: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Draws all accuracies, and each curve whose runs are all there.

        Returns the pictures' names in the run directory.
        """
        accuracy_chart(results, self.path / "accuracy.png")
        pictures = ["accuracy.png"]
        for name, curve in self.config.curves.items():
            if not {run for runs in curve.lines.values() for run in runs} <= results.keys():
                continue
            lines = {line: [results[run] for run in runs] for line, runs in curve.lines.items()}
            pictures.append(f"curves/{file_name(name)}.png")
            (self.path / "curves").mkdir(exist_ok=True)
            accuracy_curve(curve.label, curve.x, lines, self.path / pictures[-1])
        return pictures
