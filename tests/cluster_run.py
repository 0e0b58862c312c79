"""Runs the stages of `shard_stages` on a cluster: `python cluster_run.py EXECUTOR ROOT RUN_DIR [PARTITION]`.

Says what was not done, and then ends with exit code 1.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import shard_stages
from rich.console import Console

from rationalyst_jax.files.interruption import Interrupted, interrupted_by_sigterm
from rationalyst_jax.pipeline.clusters import Ranks, do_on_cluster
from rationalyst_jax.pipeline.mine_config import ClusterConfig
from rationalyst_jax.pipeline.sharded import ShardedRun


def run(executor: str, root: Path, run_dir: Path, config: ClusterConfig) -> ShardedRun:
    shards = shard_stages.shards_of(root)
    planned = partial(ShardedRun, run_dir, shards, shard_stages.STAGES, {"a": "setting"}, losses=3)
    ranks = Ranks(planned, partial(shard_stages.opened, root), workers=1)
    with planned() as work:
        do_on_cluster(work, ranks, executor, config, Console())
    return work


if __name__ == "__main__":
    executor, root, run_dir, *partition = sys.argv[1:]
    config = ClusterConfig(tasks=4, mem_per_cpu_gb=1)
    if partition:
        config = replace(config, partition=partition[0], time="10:00")
    try:
        with interrupted_by_sigterm():
            found = run(executor, Path(root), Path(run_dir), config)
    except Interrupted as stop:
        sys.exit(str(stop))
    for name, message in found.failed.items():
        print(f"{name}: {message}")
    sys.exit(bool(found.failed))
