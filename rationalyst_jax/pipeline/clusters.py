"""Shards on clusters: datatrove starts ranks on Slurm or Ray, and each does a share of the shards.

A rank does what a run on one machine does, with some of the tasks only: it has workers that are replaced when
they die, and writes the same markers. Ranks of one group of stages need not wait for each other. When all of
them have ended, this process reads what they marked, and starts those of the next group; so no rank begins
before all that it takes is there.

datatrove starts ranks, and no more. Its own marks of what is done know nothing of what it was made of, so
they are passed over.
"""

import importlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rationalyst_jax.files.settings import digest
from rationalyst_jax.pipeline.markers import status, task_name
from rationalyst_jax.pipeline.mine_config import ClusterConfig
from rationalyst_jax.pipeline.sharded import ShardedRun, StageGroup, perform
from rationalyst_jax.pipeline.workers import environments, supervise

_LOGS = "ranks"
_SECONDS_BETWEEN_LOOKS = 2


@dataclass(frozen=True)
class Ranks:
    """What every rank of a run is told.

    planned: makes the run, of the tasks of a group where it is given one. opened: as `workers.supervise`
    takes it. workers: as `workers.environments` does.
    """

    planned: Callable[..., ShardedRun]
    opened: Callable[[], AbstractContextManager[Any]]
    workers: int | None


def do_rank(ranks: Ranks, group: StageGroup, rank: int, world_size: int) -> None:
    """Does one rank's share of what is left of a group of stages, in workers of its own, which open what they
    keep once. Raises ValueError where some of it cannot be done."""
    with ranks.planned(group=group.share(rank, world_size)) as work:
        supervise(work, ranks.opened, perform, environments(ranks.workers, gpus=group.has_model))
    if not work.is_done:
        told = [f"{name}: {message}" for name, message in work.failed.items()]
        raise ValueError(told[0] if told else f"{', '.join(group.stages)}: what they take is not there")


class RankStep:
    """`do_rank` as a step of a pipeline of datatrove. It goes to ranks as a pickle; paths are those of the
    folder in which it was made."""

    def __init__(self, ranks: Ranks, group: StageGroup):
        self._ranks = ranks
        self._group = group
        self._folder = os.getcwd()

    def __call__(self, data: None, rank: int, world_size: int) -> None:
        os.chdir(self._folder)
        do_rank(self._ranks, self._group, rank, world_size)


def do_on_cluster(
    work: ShardedRun, ranks: Ranks, executor: str, config: ClusterConfig, console: Console
) -> None:
    """Does the tasks of a run on a cluster, group by group, until all are done or ranks have left some of a
    group undone. Then `work.failed` tells which, and why.

    Raises ValueError where the cluster refuses.
    """
    started: Sequence[str] = ()
    with _EXECUTORS[executor](config, work.path, console) as start:
        while (groups := work.groups()) and groups[0].stages != started:
            start(groups[0], RankStep(ranks, groups[0]))
            started = groups[0].stages
    if groups:
        refused = {stage.name: stage.refused for stage in status(work.path)}
        logs = work.path / _LOGS / groups[0].stages[0]
        for shard, stage in groups[0].left.items():
            why = refused[stage].get(shard or "all", f"its rank ended before it; logs of ranks are in {logs}")
            work.failed[task_name(stage, shard)] = why


Start = Callable[[StageGroup, RankStep], None]  # returns when all ranks of the group have ended


def _settings(step: RankStep, group: StageGroup, config: ClusterConfig, run_dir: Path) -> dict[str, Any]:
    """What both executors of datatrove are told alike."""
    return {
        "pipeline": [step],
        "tasks": min(config.tasks or 1, len(group.left)),
        "workers": config.at_once or -1,
        "cpus_per_task": config.cpus_per_task,
        "mem_per_cpu_gb": config.mem_per_cpu_gb,
        "gpus_per_task": config.gpus_per_task if group.has_model else 0,
        "skip_completed": False,
        "logging_dir": str((run_dir / _LOGS / group.stages[0]).resolve()),
    }


# ---- Slurm ----


@contextmanager
def _slurm(config: ClusterConfig, run_dir: Path, console: Console) -> Iterator[Start]:
    """Ranks are jobs of an array. Their name is made of the folder of the run: jobs that are still there from
    an earlier command are waited for. All are cancelled where this ends with an exception."""
    datatrove = _datatrove("slurm")
    name = f"rationalyst-{digest([str(run_dir.resolve()).encode()])[:8]}"
    beside = str(Path(sys.executable).parent)  # where pip puts what jobs call

    def start(group: StageGroup, step: RankStep) -> None:
        executor = datatrove.SlurmPipelineExecutor(
            **_settings(step, group, config, run_dir),
            partition=config.partition,
            time=config.time,
            job_name=name,
            qos=None,
            sbatch_args=dict(config.sbatch_args),
            env_command=f"export PATH={shlex.quote(beside)}:$PATH",
            max_array_size=-1,
        )
        executor.launch_merge_stats = _nothing  # it would wait for a place to add up numbers nobody needs
        try:
            executor.launch_job()
        except subprocess.CalledProcessError as error:
            raise ValueError(f"sbatch refuses the jobs, with exit code {error.returncode}") from None
        named = f"{', '.join(group.stages)}: ranks: {executor.tasks}, Slurm job: {name}"
        console.print(f"{named}; `mine status` says how far it is", highlight=False, soft_wrap=True)
        is_there = True
        while is_there:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            with suppress(ValueError):  # a busy controller: it is asked again
                is_there = _is_queued(name)

    try:
        while _is_queued(name):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        yield start
    except BaseException:
        subprocess.run(["scancel", f"--name={name}"])
        raise


def _is_queued(name: str) -> bool:
    """Whether jobs of a name wait or run. Raises ValueError with the words of squeue."""
    asked = subprocess.run(["squeue", "--noheader", f"--name={name}"], capture_output=True, text=True)
    if asked.returncode:
        raise ValueError(f"--executor slurm: {' '.join(asked.stderr.split())}")
    return bool(asked.stdout.strip())


def _nothing() -> None:
    pass


# ---- Ray ----


@contextmanager
def _ray(config: ClusterConfig, run_dir: Path, console: Console) -> Iterator[Start]:
    """Ranks are actors of the cluster that RAY_ADDRESS names, or that is found here; else of this machine."""
    handler = signal.getsignal(signal.SIGTERM)
    # Else whatever asks for the cluster after it was left starts another one. Ray reads this when imported.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    ray = _imported("ray")
    datatrove = _datatrove("ray")
    datatrove.RankWorker = RayRank
    ray.init(log_to_driver=False, logging_level="ERROR")
    signal.signal(signal.SIGTERM, handler)  # ray has set its own
    left = threading.Event()

    def run(executor: Any) -> None:
        try:
            executor.run()
        except Exception:
            if not left.is_set():
                raise

    def start(group: StageGroup, step: RankStep) -> None:
        executor = datatrove.RayPipelineExecutor(**_settings(step, group, config, run_dir))
        # Not in this thread: interrupted there, it would wait for ever for ranks that have no place yet.
        running = threading.Thread(target=run, args=(executor,), daemon=True)
        running.start()
        while running.is_alive():
            running.join(1)

    try:
        yield start
    finally:
        left.set()
        ray.shutdown()


class RayRank:
    """Stands in for datatrove's RankWorker, which has a process of a pool do a rank, and waits for ever when
    that is killed. Here the actor does it: Ray sees it die, and datatrove starts another one, up to three
    times."""

    def get_node_ip(self) -> str:
        return _imported("ray").util.get_node_ip_address()

    def run_for_rank(self, executor: Any, ranks: list[int], node_ips: list[str], node_idx: int) -> None:
        for rank in ranks:
            executor._run_for_rank(rank)


_EXECUTORS = {"slurm": _slurm, "ray": _ray}
_MODULES = {"slurm": ("datatrove.executor.slurm",), "ray": ("datatrove.executor.ray", "ray")}
_PROGRAMS = {"slurm": ("sbatch", "squeue", "scancel"), "ray": ()}


def check_executor(executor: str) -> None:
    """Raises ValueError where a cluster cannot be used from here."""
    for module in _MODULES[executor]:
        _imported(module)
    for program in _PROGRAMS[executor]:
        if shutil.which(program) is None:
            raise ValueError(f"--executor {executor}: there is no {program} on this machine")


def _datatrove(executor: str) -> Any:
    """A module of datatrove, which says nothing in this process. What it says in ranks is in their logs."""
    _imported("loguru").logger.disable("datatrove")
    return _imported(f"datatrove.executor.{executor}")


def _imported(module: str) -> Any:
    """A module of the extra `web`. Raises ValueError where that is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = str(error.name).partition(".")[0]
        raise ValueError(f"{name} is not installed: pip install 'rationalyst_jax[web]'") from None
