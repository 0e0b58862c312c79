"""Which part of the work is this process's, where hosts divide it and each computes for itself.

Hosts that train are joined instead (`distributed.py`): there all compute the same step.
"""

import os
import re
from collections.abc import Mapping

from rationalyst_jax.files.parts import ALONE, HostShard
from rationalyst_jax.lm.devices.distributed import is_tpu_pod, slurm_tasks


def shard_of(asked: str, environ: Mapping[str, str] = os.environ) -> HostShard:
    """What `--shard` asks for.

    "I/N" is the I-th, from 0, of N shards. "auto" looks where the environment names several processes: a
    Slurm step of more than one task, TPU hosts and slices under GKE. "tpu" asks the metadata server of a
    Cloud TPU VM. "none" is one process alone. Raises ValueError for anything else, and for an environment
    that contradicts itself.
    """
    if asked == "none":
        return ALONE
    if asked == "auto":
        return _named_in(environ)
    if asked == "tpu":
        return _of_tpu_vm()
    if (found := re.fullmatch(r"(\d+)/(\d+)", asked)) is None:
        raise ValueError(f"{asked!r}: a shard is written I/N, or auto, tpu or none")
    return HostShard(int(found[1]), int(found[2]))


def _named_in(environ: Mapping[str, str]) -> HostShard:
    if (tasks := slurm_tasks(environ)) > 1:
        return HostShard(int(environ["SLURM_PROCID"]), tasks)
    if not is_tpu_pod(environ):
        return ALONE
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    host = environ.get("TPU_WORKER_ID") or environ.get("JOB_COMPLETION_INDEX")
    if host is None and "," in hosts:
        raise ValueError("TPU_WORKER_HOSTNAMES names hosts, and no TPU_WORKER_ID says which one this is")
    of_slice = hosts.count(",") + 1
    slices = int(environ.get("MEGASCALE_NUM_SLICES") or 1)
    slice = int(environ.get("MEGASCALE_SLICE_ID") or 0)
    if slices > 1 and "MEGASCALE_SLICE_ID" not in environ:
        raise ValueError(f"there are {slices} slices, and no MEGASCALE_SLICE_ID says which one this is")
    return HostShard(slice * of_slice + int(host or 0), slices * of_slice)


def _of_tpu_vm() -> HostShard:
    """As jax numbers the hosts of a Cloud TPU VM pod, without joining them."""
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    try:
        return HostShard(GceTpuCluster.get_process_id(), GceTpuCluster.get_process_count())
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"tpu: no metadata server of a TPU VM says it ({error}): give I/N") from None
