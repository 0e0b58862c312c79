"""The whole method, stage after stage: documents → rationales → RATIONALYST → trajectories → accuracy."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from rationalyst_jax.evaluate.grade import compare, grade, summarize
from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.files.settings import file_digest
from rationalyst_jax.files.whole import file_name, write_json
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.weights.hf import check_llama, fingerprint, load_llama
from rationalyst_jax.lm.weights.open import open_checkpoint
from rationalyst_jax.lm.weights.tokenizer import marker_ids
from rationalyst_jax.mine.annotate import annotate
from rationalyst_jax.mine.documents import read_annotations, read_documents
from rationalyst_jax.mine.likelihood_filter import decide, score_triples
from rationalyst_jax.mine.store import Provenance, read_filtered, write_filtered
from rationalyst_jax.mine.summary import summarize as summarize_mining
from rationalyst_jax.mine.triples import extract
from rationalyst_jax.pipeline.config import ExperimentConfig, Run
from rationalyst_jax.pipeline.stages import RunDir
from rationalyst_jax.prompts.prompt import check_prompts, load_prompts
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.solve import solve
from rationalyst_jax.reason.strategies import check_strategy
from rationalyst_jax.reason.traces import Trace, mean_ledger, read_traces
from rationalyst_jax.reason.trajectory import Roles
from rationalyst_jax.report.plots import accuracy_chart, loss_curve
from rationalyst_jax.report.progress import so_far, track, track_steps
from rationalyst_jax.report.tables import accuracy_table, counts_table, ledger_table
from rationalyst_jax.roles.role import Role
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.task import task_named
from rationalyst_jax.train.export import export
from rationalyst_jax.train.loop import fit
from rationalyst_jax.train.rationales import read_rationales
from rationalyst_jax.train.store import open_store
from rationalyst_jax.world.checkpoint import checkpoint_path
from rationalyst_jax.world.corpus import QUESTION_SETS, documents, questions

PILOT = 50  # questions that tell what a candidate costs


def run(config: ExperimentConfig, *, full: bool, console: Console) -> dict[str, Any]:
    """Runs (or continues) an experiment in its run directory and returns what `summary.json` there holds.

    Without `full`, runs marked `full` are left out. Raises ValueError for bad input, and for a run directory
    made with other settings or input files.
    """
    # What is wrong with the input is found before anything is written.
    experiment = Stages(config, console)
    run_dir = RunDir(experiment.path, experiment.settings(), console)
    strategies, ablations = (
        {name: r for name, r in runs.items() if full or not r.full}
        for runs in (config.strategies, config.ablations)
    )
    runs = {**strategies, **ablations}
    wanted = dict.fromkeys(r.rationalyst for r in runs.values() if r.rationalyst is not None)

    stages = ["data", "annotate", "filter"]
    run_dir.stage("data", experiment.make_data)
    run_dir.stage("annotate", experiment.annotate)
    mining = run_dir.stage("filter", experiment.filter)
    training = {}
    for name in wanted:
        if config.rationalysts[name].train:
            stages.append(f"train {name}")
            training[name] = run_dir.stage(stages[-1], lambda name=name: experiment.train(name))
    for name in runs:
        stages.append(f"reason {name}")
        run_dir.stage(stages[-1], lambda name=name: experiment.reason(name, runs[name]))

    results = experiment.evaluate(runs)
    summary = {
        "seed": config.seed,
        "strategies": {name: results[name] for name in strategies},
        "mining": mining,
        "training": training,
        "ablations": {name: results[name] for name in ablations},
        "seconds": {stage: run_dir.seconds(stage) for stage in stages},
    }
    write_json(run_dir.path / "summary.json", summary)
    accuracy_chart(results, run_dir.path / "accuracy.png")
    for title in ("strategies", "ablations"):
        if summary[title]:
            console.print(accuracy_table(title, summary[title]))
    console.print(ledger_table("ledger, means of a question", {n: r["ledger"] for n, r in results.items()}))
    console.print(
        f"{sum(summary['seconds'].values()):.0f} s; all of it in {run_dir.path}/summary.json, accuracy.png"
    )
    return summary


class Stages:
    """The stages of one experiment. Each reads files, writes files, and returns a small JSON value."""

    def __init__(self, config: ExperimentConfig, console: Console):
        self.config = config
        self.path = Path(config.run_dir)
        self.console = console
        self.task = task_named(config.task)
        self.prompts = load_prompts(config.prompts)
        base = open_checkpoint(checkpoint_path(config.model))
        wanted = ("annotate", "follow", "follow_guided", "rationale", "step")
        check_prompts(base.tokenizer, self.prompts, wanted)
        base.check_generation()
        check_llama(base.path)
        marker_ids(base.tokenizer, (*config.filter.suppress, *config.reason.suppress))
        self.base, self.base_fingerprint = base.path, base.fingerprint
        known = QUESTION_SETS if config.world else config.questions
        for name, wanted in {**config.strategies, **config.ablations}.items():
            try:
                check_strategy(self.reason_config(wanted), has_rationalyst=wanted.rationalyst is not None)
            except ValueError as error:
                raise ValueError(f"experiment: run {name!r}: {error}") from None
            if wanted.questions not in known:
                sets = ", ".join(known)
                raise ValueError(f"experiment: run {name!r} wants questions {wanted.questions!r} of {sets}")
        self.engine = cache(self._engine)  # a model is loaded when first asked for, and once

    def reason_config(self, run: Run) -> ReasonConfig:
        own = {name: getattr(run, name) for name in ("candidates", "keep_rationales", "guide")}
        own = {name: value for name, value in own.items() if value is not None}
        return replace(self.config.reason, strategy=run.strategy, **own)

    def settings(self) -> dict[str, Any]:
        """All that decides the results, as JSON values: the config, and fingerprints of what it names."""
        config, documents = asdict(self.config), self.config.documents
        del config["run_dir"]  # a run may be moved and go on, as may its input
        return config | {
            "model": self.base_fingerprint,
            "prompts": self.prompts.version,
            "documents": file_digest(Path(documents)) if documents else None,
            "questions": {name: file_digest(Path(path)) for name, path in self.config.questions.items()},
        }

    def _engine(self, checkpoint: Path) -> Engine:
        opened = open_checkpoint(checkpoint)
        return Engine(opened.load_for_inference(), opened.tokenizer)

    def role(self, checkpoint: Path) -> Role:
        engine = self.engine(checkpoint)
        return Role(engine, engine.tokenizer, fingerprint(checkpoint))

    def documents_path(self) -> Path:
        return Path(self.config.documents or self.path / "data" / "documents.jsonl")

    def questions_path(self, name: str) -> Path:
        if self.config.world:
            return self.path / "data" / f"{name}.jsonl"
        return Path(self.config.questions[name])

    def make_data(self) -> dict[str, int]:
        """Checks the input files, or has the world generate them."""
        if self.config.world:
            world, seed = self.config.world, self.config.seed
            write_rows(self.documents_path(), documents(seed, world.documents))
            for name in QUESTION_SETS:
                write_rows(self.questions_path(name), questions(seed, world.questions, name))
        names = QUESTION_SETS if self.config.world else self.config.questions
        counts = {name: len(self.task.read(self.questions_path(name))) for name in names}
        return {"documents": len(read_documents(self.documents_path())), **counts}

    def annotate(self) -> None:
        base = self.engine(self.base)
        found = read_documents(self.documents_path())
        with track(self.console, "documents annotated", len(found)) as advance:
            annotate(
                found,
                base,
                base.tokenizer,
                self.prompts,
                self.config.annotate,
                self.path / "mine" / "annotations.jsonl",
                advance,
            )

    def filter(self) -> dict[str, Any]:
        """Parses the annotations, scores every triple once, and writes what each RATIONALYST learns from."""
        extraction = extract(read_annotations(self.path / "mine" / "annotations.jsonl"))
        base = self.engine(self.base)
        config = self.config.filter
        with track(self.console, "rationales scored", len(extraction.triples)) as advance:
            scored, _ = score_triples(
                extraction.triples,
                base.model,
                base.tokenizer,
                self.prompts,
                config,
                self.path / "mine" / "scores.jsonl",
                advance,
            )
        summary = summarize_mining(extraction, decide(scored, config))
        trained = {name: r for name, r in self.config.rationalysts.items() if r.train}
        for name, rationalyst in trained.items():
            chosen = replace(config, keep=rationalyst.keep)
            made_by = {"annotate": asdict(self.config.annotate), "filter": asdict(chosen)}
            scorer = {"filter_model": self.config.model, "filter_prompts": self.prompts.version}
            provenance = Provenance(self.config.model, self.prompts.version, made_by | scorer)
            write_filtered(self.rationales_path(name), decide(scored, chosen), provenance)
        rows = {key: value for key, value in asdict(summary).items() if not isinstance(value, dict)}
        rows |= {
            f"  {name}": count for name, count in {**summary.document_outcomes, **summary.reasons}.items()
        }
        self.console.print(counts_table("mined", rows))
        return asdict(summary)

    def rationales_path(self, name: str) -> Path:
        return self.path / "mine" / f"{name}.parquet"

    def train(self, name: str) -> dict[str, Any]:
        """Fine-tunes the base model on the rationales of one RATIONALYST and exports it."""
        base, folder = self.engine(self.base), self.path / "train" / name
        folder.mkdir(parents=True, exist_ok=True)
        rationales = self.rationales_path(name)
        kept = sum(triple.kept for triple in read_filtered(rationales))
        made_of = {
            "rationales": file_digest(rationales),
            "model": self.base_fingerprint,
            "prompts": self.prompts.version,
        }
        config = self.config.train
        store = open_store(
            folder / "data",
            made_of,
            lambda: read_rationales(rationales, base.tokenizer, self.prompts),
            config.row_length,
            config.batch_examples,
        )
        with track_steps(self.console) as (progress, note):
            result = fit(
                load_llama(self.base),  # the run takes its weights over
                store,
                config,
                folder,
                starts_from=self.base_fingerprint,
                progress=progress,
                note=note,
            )
        export(result.model, self.base, folder / "hf")
        loss_curve(folder / "metrics.jsonl", folder / "loss.png")
        counts = {"rationales": kept, "steps": result.steps, "loss": result.metrics["loss"]}
        if "val_loss" in result.metrics:
            counts["validation loss"] = result.metrics["val_loss"]
        counts["tokens separate / in trees"] = result.sequence_tokens / result.tree_tokens
        self.console.print(counts_table(f"trained {name}", counts))
        return counts

    def reason(self, name: str, run: Run) -> None:
        agent = self.role(self.base)
        rationalyst = None
        if run.rationalyst is not None:
            trained = self.config.rationalysts[run.rationalyst].train
            rationalyst = self.role(self.path / "train" / run.rationalyst / "hf" if trained else self.base)
        asked = self.task.read(self.questions_path(run.questions))
        roles, config = Roles(agent, rationalyst, agent), self.reason_config(run)

        def traces(
            asked: list[Question], config: ReasonConfig, path: Path, progress: Callable[[int], None]
        ) -> list[Trace]:
            return solve(asked, roles, self.prompts, config, self.task.extract, path, progress)

        if run.budget_of is not None:
            path = self.path / "reason" / "pilot" / self.traces_path(name).name
            pilot = traces(asked[:PILOT], config, path, lambda done: None)
            ids = {trace.id for trace in pilot}
            other = [trace for trace in read_traces(self.traces_path(run.budget_of)) if trace.id in ids]
            budget = mean_ledger(other)["flops"]
            affordable = round(config.candidates * budget / mean_ledger(pilot)["flops"])
            config = replace(config, candidates=max(1, affordable))
            self.console.print(f"{config.candidates} candidates take what {run.budget_of} takes")
        with track(self.console, f"questions ({name})", len(asked)) as advance:
            traces(asked, config, self.traces_path(name), so_far(advance))

    def traces_path(self, name: str) -> Path:
        return self.path / "reason" / f"{file_name(name)}.jsonl"

    def evaluate(self, runs: Mapping[str, Run]) -> dict[str, dict[str, Any]]:
        """Each run's accuracy with interval, ledger per question, and paired comparisons with the baselines
        `random` and `likelihood` on the same questions."""
        grades = {
            name: grade(self.traces_path(name), self.task.read(self.questions_path(r.questions)), self.task)
            for name, r in runs.items()
        }
        results = {}
        for name, r in runs.items():
            results[name] = {
                **asdict(summarize(grades[name])),
                "ledger": mean_ledger(read_traces(self.traces_path(name))),
            }
            for baseline in ("random", "likelihood"):
                other = next(
                    (n for n, b in runs.items() if b.strategy == baseline and b.questions == r.questions),
                    None,
                )
                comparison = None if other in (None, name) else compare(grades[name], grades[other])
                results[name][f"vs_{baseline}"] = comparison and asdict(comparison)
        return results
