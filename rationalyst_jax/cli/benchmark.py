"""`rationalyst benchmark`: tasks × checkpoints × approaches as one run."""

from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from rationalyst_jax.cli.shard import shard_from
from rationalyst_jax.pipeline.benchmark_config import BenchmarkConfig


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="TASK",
        help="Tasks to work on now. The others are left for another call.",
    )
    parser.add_argument(
        "--shard",
        default="auto",
        metavar="I/N",
        help="Which part of the work is this process's, where hosts divide it: "
        '"I/N" for the I-th, from 0, of N shards. "auto" finds it where Slurm or GKE starts several '
        'processes, "tpu" asks the metadata server of a TPU VM, and "none" is one process alone.',
    )
    parser.add_class_arguments(BenchmarkConfig, as_group=False)


def run(only: list[str] | None, shard: str, **config: Any) -> None:
    """Solve and grade every task with every checkpoint and approach, or continue a run that was killed.

    It ends with a table for each task, and the paper's figures beside ours. `--config paper` has the paper's
    seven tasks.
    """
    part = shard_from(shard)
    from rationalyst_jax.pipeline.benchmark import run as run_benchmark

    run_benchmark(BenchmarkConfig(**config), only=only, shard=part, console=Console())
