"""What a benchmark is told: tasks × checkpoints × approaches, on the same questions."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rationalyst_jax.files.ranges import AT_LEAST_1, require
from rationalyst_jax.files.whole import file_name
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.pipeline.approach import Approach
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.roles.config import EndpointConfig


@dataclass(frozen=True)
class TaskQuestions:
    """Where the questions of a task are.

    Attributes:
        questions: File of the task's questions in its own format, or tfds:NAME[:SPLIT] of a prepared set.
        shots_from: Questions of its training split, from which the solved ones that the agent is shown are
            drawn: a file or tfds:NAME:SPLIT. By default it is shown those that we wrote.
        prompts: Prompt set for this task, instead of the benchmark's.
    """

    questions: str
    shots_from: str | None = None
    prompts: str | None = None


@dataclass(frozen=True)
class Contestant:
    """Models that solve questions together: each a checkpoint folder, "world", or the address of an endpoint.

    Attributes:
        agent: Model that proposes steps.
        rationalyst: Model that writes rationales. Without one, approaches that need it are left out.
        scorer: Model that ranks steps; by default the agent.
    """

    agent: str
    rationalyst: str | None = None
    scorer: str | None = None

    @property
    def places(self) -> tuple[str, ...]:
        """All its models, each where it is."""
        return tuple(p for p in (self.agent, self.rationalyst, self.scorer) if p is not None)


@dataclass(frozen=True)
class BenchmarkConfig:
    """Tasks × checkpoints × approaches as one run.

    Attributes:
        run_dir: Folder for everything that the benchmark writes. A killed run continues there.
        prompts: Prompt set: the name of a shipped one (llama3, world), or a YAML file.
        tasks: Questions by the name of the task.
        checkpoints: Models by a name of your own.
        approaches: Ways to solve a question by a name of your own.
        baselines: Names of approaches that every other one is compared with, on the same questions.
        samples: Number of times that each question is solved, with seeds that follow reason.seed. Several
            samples of a question count as one cluster.
        limit: Number of questions of each task to use, from the first on; by default all.
        reason: How questions are solved.
        engine: Models opened from checkpoint folders.
        endpoint: Models behind an address.

    Raises ValueError naming the key and the value that is out of range.
    """

    run_dir: str
    prompts: str
    tasks: Mapping[str, TaskQuestions]
    checkpoints: Mapping[str, Contestant]
    approaches: Mapping[str, Approach]
    baselines: tuple[str, ...] = ("random",)
    samples: int = 1
    limit: int | None = None
    reason: ReasonConfig = field(default_factory=ReasonConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)

    def __post_init__(self):
        require("benchmark", self, AT_LEAST_1, "samples")
        if self.limit is not None:
            require("benchmark", self, AT_LEAST_1, "limit")
        for key in ("tasks", "checkpoints", "approaches"):
            names = list(getattr(self, key))
            if not names:
                raise ValueError(f"benchmark: {key} names nothing")
            files = [file_name(name) for name in names]  # one name, one file
            if twice := [name for name, file in zip(names, files, strict=True) if files.count(file) > 1]:
                raise ValueError(f"benchmark: {' and '.join(map(repr, twice))} would share their files")
        for name in self.baselines:
            if name not in self.approaches:
                raise ValueError(f"benchmark: baseline {name!r} is no approach: {', '.join(self.approaches)}")
        names = list(self.approaches)
        for place, (name, approach) in enumerate(self.approaches.items()):
            try:
                approach.check_budget(names[:place])
            except ValueError as error:
                raise ValueError(f"benchmark: approach {name!r}: {error}") from None
