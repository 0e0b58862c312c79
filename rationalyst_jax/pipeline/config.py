"""What an experiment is told (the whole method on one set of documents and questions), and pre-training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rationalyst_jax.files.ranges import AT_LEAST_1, SEED, require
from rationalyst_jax.files.whole import file_name
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.mine.config import AnnotateConfig, FilterConfig
from rationalyst_jax.pipeline.approach import Approach
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.tasks.names import TaskName
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.world.pretraining import Mixture


@dataclass(frozen=True)
class WorldData:
    """Documents and questions to be made by the world's generator.

    Attributes:
        documents: Number of unlabeled documents.
        questions: Number of questions of each set.
    """

    documents: int = 1000
    questions: int = 500

    def __post_init__(self):
        for name in ("documents", "questions"):
            if getattr(self, name) < 1:
                raise ValueError(f"experiment: world.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Rationalyst:
    """One way to get a rationale model.

    Attributes:
        keep: Which rationales it is trained on: those the filter keeps by "gain", "all", or as many "random"
            ones.
        tau: Smallest gain (nats) with which a rationale is kept, whatever its source, instead of what
            `filter` says.
        share: Fraction of the kept rationales that it is trained on, drawn by lot, instead of what `filter`
            says; a smaller share is part of a larger one.
        train: Whether it is trained; if not, it is the model as it is.
        rounds: Number of rounds of mining, from the first on, whose rationales it is trained on; by default
            all.
    """

    keep: Literal["gain", "all", "random"] = "gain"
    tau: float | None = None
    share: float | None = None
    train: bool = True
    rounds: int | None = None


@dataclass(frozen=True)
class Run(Approach):
    """One pass over a set of questions.

    Attributes:
        rationalyst: Name of the rationale model, one of the experiment's rationalysts.
        scorer: Who scores and judges candidates: the "agent" (the paper), or the run's "rationalyst" itself.
        questions: Name of the set of questions.
        full: Whether the run is left out unless --full is given.
    """

    rationalyst: str | None = None
    scorer: Literal["agent", "rationalyst"] = "agent"
    questions: str = "test"
    full: bool = False


@dataclass(frozen=True)
class Curve:
    """A picture of runs: how accuracy goes with one setting of theirs.

    Attributes:
        label: Words for the axis of the setting.
        x: Values of the setting, in ascending order.
        lines: Names of runs by the name of a line: one run for each value. A line that names one run again
            and again is flat: what the others are to be compared with.
    """

    label: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment, from documents to a table.

    Attributes:
        run_dir: Folder for everything that the experiment writes. A killed run continues there.
        model: Checkpoint folder, or "world" for the shipped model. It annotates, proposes steps and scores
            them, and fine-tuning starts from it.
        prompts: Prompt set: the name of a shipped one (llama3, world), or a YAML file.
        task: Name of the benchmark. It decides how questions are read and graded.
        seed: Seed of every stage; no stage may have another.
        documents: File of unlabeled documents, as `mine` reads them. Without one, `world` makes them.
        questions: Files of the benchmark's questions, or prepared sets (tfds:NAME[:SPLIT][@DIR]), by the name
            of the set. Without any, `world` makes them.
        world: Documents and questions that the generator of the embedded world makes.
        engine: How models generate and score.
        mesh: How the filter divides all devices; by default it uses one device.
        annotate: How documents are annotated.
        rounds: Names of RATIONALYSTs that mine further rounds: the first one the second round, and so on. The
            documents are divided equally among all rounds. A RATIONALYST that is trained inserts rationales,
            asked as it was trained to be; one that is not annotates as in the first round, as a control. The
            model filters in every round.
        filter: How rationales are judged.
        train: How each RATIONALYST is trained.
        reason: How questions are solved.
        rationalysts: Rationale models by name: how each is trained.
        strategies: Runs of the first table by name: one strategy on one set of questions each.
        ablations: Runs of the second table by name: one strategy on one set of questions each.
        baseline: Name of the run that the tables compare every other one with, question by question. By
            default they compare with the first run of the strategies random and likelihood.
        curves: Pictures by name, each of some of the runs.
    """

    run_dir: str
    model: str
    prompts: str
    task: TaskName = "gsm8k"
    seed: int = 0
    documents: str | None = None
    questions: Mapping[str, str] = field(default_factory=dict)
    world: WorldData | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    mesh: MeshShape | None = None
    annotate: AnnotateConfig = field(default_factory=AnnotateConfig)
    rounds: Sequence[str] = ()
    filter: FilterConfig = field(default_factory=FilterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    reason: ReasonConfig = field(default_factory=ReasonConfig)
    rationalysts: Mapping[str, Rationalyst] = field(default_factory=lambda: {"rationalyst": Rationalyst()})
    strategies: Mapping[str, Run] = field(default_factory=dict)
    ablations: Mapping[str, Run] = field(default_factory=dict)
    baseline: str | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)

    def __post_init__(self):
        if (self.documents is None) == (self.world is None):
            raise ValueError("experiment: give either documents (and questions) or world")
        require("experiment", self, SEED, "seed")
        for name in ("annotate", "filter", "train", "reason"):
            stage = getattr(self, name)
            if stage.seed not in (0, self.seed):
                raise ValueError(
                    f"experiment: {name}.seed is {stage.seed}, but the whole has seed {self.seed}"
                )
            object.__setattr__(self, name, replace(stage, seed=self.seed))
        for names in ((*self.strategies, *self.ablations), tuple(self.rationalysts), tuple(self.curves)):
            files = [file_name(name) for name in names]  # one name, one file
            if twice := [name for name, file in zip(names, files, strict=True) if files.count(file) > 1]:
                raise ValueError(f"experiment: {' and '.join(map(repr, twice))} would share their files")
        for name, rationalyst in self.rationalysts.items():
            _check_rationalyst(name, rationalyst)
        self._check_rounds()
        runs = {**self.strategies, **self.ablations}
        if self.baseline is not None and self.baseline not in runs:
            raise ValueError(
                f"experiment: the baseline {self.baseline!r} is no run, there are {', '.join(runs)}"
            )
        for name, curve in self.curves.items():
            _check_curve(name, curve, runs)
        for place, (name, run) in enumerate(runs.items()):
            before = [
                other
                for other, its in list(runs.items())[:place]
                if its.questions == run.questions and (run.full or not its.full)
            ]
            try:
                run.check_budget(before)
            except ValueError as error:
                raise ValueError(f"experiment: run {name!r}: {error}") from None
            if run.rationalyst is not None and run.rationalyst not in self.rationalysts:
                raise ValueError(
                    f"experiment: run {name!r} wants rationalyst {run.rationalyst!r}, "
                    f"there are {', '.join(self.rationalysts)}"
                )
            if run.scorer == "rationalyst" and run.rationalyst is None:
                raise ValueError(f"experiment: run {name!r} wants its rationalyst as scorer, but has none")

    def _check_rounds(self) -> None:
        """Raises ValueError for rounds that are not there, or that need what comes after them."""
        rounds = 1 + len(self.rounds)
        for name, rationalyst in self.rationalysts.items():
            if rationalyst.rounds is not None and not 1 <= rationalyst.rounds <= rounds:
                raise ValueError(
                    f"experiment: rationalyst {name!r}: rounds must be between 1 and {rounds}, the rounds of "
                    f"mining, got {rationalyst.rounds}"
                )
        for number, name in enumerate(self.rounds, start=2):
            if name not in self.rationalysts:
                raise ValueError(
                    f"experiment: round {number} wants rationalyst {name!r}, "
                    f"there are {', '.join(self.rationalysts)}"
                )
            rationalyst = self.rationalysts[name]
            if not rationalyst.train:
                continue
            if (rationalyst.rounds or rounds) >= number:
                raise ValueError(
                    f"experiment: round {number} is mined by rationalyst {name!r}, which is trained on that "
                    f"round: its rounds must be at most {number - 1}"
                )
            if self.annotate.method != "insert":
                raise ValueError(
                    f"experiment: rationalyst {name!r} mines round {number} by insertion: annotate.method "
                    f"must be insert, got {self.annotate.method!r}"
                )


def _check_rationalyst(name: str, rationalyst: Rationalyst) -> None:
    """Raises ValueError for a setting that would change nothing."""
    given = [key for key in ("tau", "share", "rounds") if getattr(rationalyst, key) is not None]
    if given and not rationalyst.train:
        raise ValueError(f"experiment: rationalyst {name!r} is not trained, its {given[0]} changes nothing")
    if rationalyst.tau is not None and rationalyst.keep == "all":
        raise ValueError(f"experiment: rationalyst {name!r} keeps all, its tau changes nothing")


def _check_curve(name: str, curve: Curve, runs: Mapping[str, Run]) -> None:
    """Raises ValueError for values out of order, and for a line that has not one known run for each."""
    finite = all(map(math.isfinite, curve.x))
    if not curve.x or not finite or list(curve.x) != sorted({*curve.x}):
        raise ValueError(f"experiment: curve {name!r}: x must be finite and ascend, got {list(curve.x)}")
    if not curve.lines:
        raise ValueError(f"experiment: curve {name!r} has no lines")
    for line, points in curve.lines.items():
        if len(points) != len(curve.x):
            raise ValueError(
                f"experiment: curve {name!r}: line {line!r} has {len(points)} runs for {len(curve.x)} values"
            )
        if unknown := [point for point in points if point not in runs]:
            raise ValueError(
                f"experiment: curve {name!r}: line {line!r} wants run {unknown[0]!r}, "
                f"there are {', '.join(runs)}"
            )


@dataclass(frozen=True)
class PretrainConfig:
    """The recipe of the world's base model: documents read once by a Llama.

    Attributes:
        seed: Seed of the texts, the first weights and the order.
        texts: Number of texts that the model reads.
        mixture: Kinds of text that the model reads, by their shares.
        train: How the model is trained.

    Raises ValueError naming the key and the value that is out of range.
    """

    seed: int = 0
    texts: int = 90_000
    mixture: Mixture = field(default_factory=Mixture)
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            batch_examples=40,
            row_length=320,
            microbatch_rows=8,
            peak_learning_rate=3e-3,
            warmup_fraction=0.02,
            b2=0.98,
            weight_decay=0.05,
            clip_norm=1.0,
            validation_fraction=0.005,
            save_every=200,
            validate_every=200,
        )
    )

    def __post_init__(self):
        require("pretrain config", self, AT_LEAST_1, "texts")
        require("pretrain config", self, SEED, "seed")
