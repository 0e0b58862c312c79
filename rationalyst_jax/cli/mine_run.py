"""`rationalyst mine run`: mining over many shards."""

from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from rationalyst_jax.pipeline.mine_config import MineRunConfig


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_class_arguments(MineRunConfig, as_group=False)


def run(**config: Any) -> None:
    """Mine shards of documents in worker processes, or go on with a run that was stopped.

    Documents are read, annotated and filtered, shard by shard. All rationales end in one Parquet file, which
    `rationalyst train` reads. A worker that dies is replaced. `rationalyst mine status` says how far it is.
    """
    from rationalyst_jax.pipeline.mine_run import run as run_mining

    run_mining(MineRunConfig(**config), console=Console())
