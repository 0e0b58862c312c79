"""What an experiment is told: the whole method on one set of documents and questions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rationalyst_jax.mine.annotate import AnnotateConfig
from rationalyst_jax.mine.likelihood_filter import FilterConfig
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.train.config import TrainConfig


@dataclass(frozen=True)
class WorldData:
    """Documents and questions to be made by the world's generator, by their number."""

    documents: int = 1000
    questions: int = 500


@dataclass(frozen=True)
class Rationalyst:
    """One way to get a rationale model: which rationales it is trained on, or none (`train` false)."""

    keep: Literal["gain", "all", "random"] = "gain"
    train: bool = True


@dataclass(frozen=True)
class Run:
    """One pass over a set of questions.

    strategy: of `reason`. rationalyst: a name among the experiment's. candidates: instead of `reason`'s.
    full: only in full runs.
    """

    strategy: str
    rationalyst: str | None = None
    candidates: int | None = None
    questions: str = "test"
    full: bool = False


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment, from documents to a table.

    run_dir: where everything goes; a run that was killed continues there. model: Hugging Face checkpoint of
    annotator, agent and scorer, and where fine-tuning starts ("world": the one shipped). prompts: a shipped
    prompt set or a YAML file. seed: of everything, in place of the stages' own seeds.
    documents and questions: JSONL files, questions by name of the set; or made by the generator (`world`).
    """

    run_dir: str
    model: str
    prompts: str
    task: str = "gsm8k"
    seed: int = 0
    documents: str | None = None
    questions: Mapping[str, str] = field(default_factory=dict)
    world: WorldData | None = None
    annotate: AnnotateConfig = field(default_factory=AnnotateConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    reason: ReasonConfig = field(default_factory=ReasonConfig)
    rationalysts: Mapping[str, Rationalyst] = field(default_factory=lambda: {"rationalyst": Rationalyst()})
    strategies: Mapping[str, Run] = field(default_factory=dict)
    ablations: Mapping[str, Run] = field(default_factory=dict)

    def __post_init__(self):
        if (self.documents is None) == (self.world is None):
            raise ValueError("experiment: give either documents (and questions) or world")
        for name, run in {**self.strategies, **self.ablations}.items():
            if run.rationalyst is not None and run.rationalyst not in self.rationalysts:
                raise ValueError(
                    f"experiment: run {name!r} wants rationalyst {run.rationalyst!r}, "
                    f"there are {', '.join(self.rationalysts)}"
                )
