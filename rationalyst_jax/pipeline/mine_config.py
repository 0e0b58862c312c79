"""What mining over shards is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from rationalyst_jax.files.ranges import AT_LEAST_0, AT_LEAST_1, FRACTION, require
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.mine.config import (
    AnnotateConfig,
    DecontaminateConfig,
    DedupConfig,
    FilterConfig,
    PrefilterConfig,
)
from rationalyst_jax.roles.config import EndpointConfig

Executor = Literal["here", "slurm", "ray"]


@dataclass(frozen=True)
class ClusterConfig:
    """How the shards of a run are divided among the machines of a cluster.

    Attributes:
        tasks: Number of ranks that the shards are divided among: jobs of a Slurm array, or actors of Ray. It
            is needed there.
        at_once: How many ranks may work at once. By default as many as the cluster has room for.
        cpus_per_task: CPUs of each rank.
        mem_per_cpu_gb: Memory for each of these CPUs, in GB.
        gpus_per_task: GPUs of each rank of a stage that computes a model. It has a worker for each, unless
            workers says otherwise. Ranks of other stages have none.
        partition: Slurm: the partition that jobs are sent to. It is needed there.
        time: Slurm: the longest time of a rank, as days-hours:minutes:seconds or a part of that. It is needed
            there.
        sbatch_args: Slurm: other options of sbatch by their long names without dashes, such as account or
            qos.

    Raises ValueError naming the key and the value that is out of range.
    """

    tasks: int | None = None
    at_once: int | None = None
    cpus_per_task: int = 1
    mem_per_cpu_gb: int = 2
    gpus_per_task: int = 0
    partition: str | None = None
    time: str | None = None
    sbatch_args: Mapping[str, str | int] = field(default_factory=dict)

    def __post_init__(self):
        given = [name for name in ("tasks", "at_once") if getattr(self, name) is not None]
        require("cluster", self, AT_LEAST_1, *given, "cpus_per_task", "mem_per_cpu_gb")
        require("cluster", self, AT_LEAST_0, "gpus_per_task")


# What an executor needs, and what only others know, of a ClusterConfig.
_NEEDED: Mapping[Executor, Sequence[str]] = {
    "here": (),
    "slurm": ("tasks", "partition", "time"),
    "ray": ("tasks",),
}
_UNKNOWN: Mapping[Executor, Sequence[str]] = {
    "here": tuple(one.name for one in fields(ClusterConfig)),
    "slurm": (),
    "ray": ("partition", "time", "sbatch_args"),
}


@dataclass(frozen=True)
class MineRunConfig:
    """One run of mining, from shards of documents to rationales.

    Attributes:
        run_dir: Folder for everything that the run writes. A killed run continues there.
        documents: Shards of documents: a folder of files, JSONL, JSON, CSV (.gz and .zst too) or Parquet, or
            one such file. Each row has text, and may have id and source. An id may be used once in all
            shards.
        model: Model that annotates: a checkpoint folder, "world" for the shipped model, or the address of an
            OpenAI-compatible endpoint (http://host:port/v1).
        prompts: Prompt set: the name of a shipped one (llama3, world), or a YAML file.
        scorer: Checkpoint folder of the model that judges rationales, or "world"; by default the model that
            annotates.
        executor: What starts workers: "here", on this machine alone; "slurm" or "ray", on the machines of a
            cluster, through datatrove. The folders of documents, models and the run must be theirs too.
        workers: Number of processes that work at once, in each rank of a cluster, each with models of its
            own. By default one for each NVIDIA GPU, which it has alone, and one on a machine without.
        losses: How often the worker of one shard may die. Another one then goes on with that shard. After
            more deaths the run stops.
        bad_rows: Largest fraction of a shard's rows that may be malformed. Such rows are left out, counted
            and listed. With 0 the first one is an error.
        encoder: Folder of a sentence encoder, BERT or MPNet, for the prefilter. Without one all documents
            pass.
        references: What the prefilter compares documents with: training questions by the names of their
            tasks, each SPLIT=FILE, FILE or tfds:NAME[:SPLIT][@DIR].
        against: Questions of evaluation sets by the names of their tasks, each FILE or
            tfds:NAME[:SPLIT][@DIR]. Documents that hold one are dropped. Without them nothing is looked for.
        duplicates: Whether documents may be duplicates of each other. By default only the first stays.
        min_similarity: Smallest similarity of a copy to its document (0 to 1) with which the copy is used.
        cluster: Ranks on a cluster.
        engine: Models opened from checkpoint folders.
        endpoint: Models behind an address.
        prefilter: Which documents are like reasoning.
        dedup: Which documents are duplicates.
        decontaminate: Which documents hold a question of an evaluation set.
        annotate: How documents are annotated. Each shard has a seed of its own, made of this seed and the
            shard's name.
        filter: How rationales are judged. Lots (keep "random", share) are drawn within a shard.

    Raises ValueError naming the key and the value that is out of range.
    """

    run_dir: str
    documents: str
    model: str
    prompts: str
    scorer: str | None = None
    executor: Executor = "here"
    workers: int | None = None
    losses: int = 3
    bad_rows: float = 0.5
    encoder: str | None = None
    references: Mapping[str, str] = field(default_factory=dict)
    against: Mapping[str, str] = field(default_factory=dict)
    duplicates: bool = False
    min_similarity: float = 0.9
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    prefilter: PrefilterConfig = field(default_factory=PrefilterConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    annotate: AnnotateConfig = field(default_factory=AnnotateConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)

    def __post_init__(self):
        if self.workers is not None:
            require("mine run", self, AT_LEAST_1, "workers")
        require("mine run", self, AT_LEAST_0, "losses")
        require("mine run", self, FRACTION, "bad_rows", "min_similarity")
        for name in _NEEDED[self.executor]:
            if getattr(self.cluster, name) is None:
                raise ValueError(f"mine run: --executor {self.executor} needs cluster.{name}")
        for name in _UNKNOWN[self.executor]:
            if getattr(self.cluster, name) != getattr(ClusterConfig(), name):
                raise ValueError(f"mine run: --executor {self.executor} has no use for cluster.{name}")
        if (self.encoder is None) != (not self.references):
            raise ValueError("mine run: a prefilter needs both, an encoder and references")
        unused = {
            "prefilter": self.encoder is None and self.prefilter != PrefilterConfig(),
            "dedup": self.duplicates and self.dedup != DedupConfig(),
            "decontaminate": not self.against and self.decontaminate != DecontaminateConfig(),
        }
        if names := [name for name, is_unused in unused.items() if is_unused]:
            raise ValueError(f"mine run: {', '.join(names)}: settings of a stage that is not done")
