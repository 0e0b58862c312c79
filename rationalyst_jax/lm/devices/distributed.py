"""Start-up of runs that span several processes: one for each host, or for each GPU.

Where processes are many, all run the same program in step: process 0 prints and writes what is written once,
and `barrier` lets the others wait for it. Alone, a process is process 0 and waits for nobody.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from rationalyst_jax.lm.devices.programs import keep_none

# Seconds without a sign of life after which a process counts as dead, and jax aborts the others. jax's own
# are twice as many: devices that wait for a dead one are paid for.
HEARTBEAT = 50

# jax is imported in functions: the command line reads the config's fields without waiting for it.


@dataclass(frozen=True)
class DistributedConfig:
    """When to connect to other processes, and to which.

    A process uses all its host's devices unless JAX_LOCAL_DEVICE_IDS lists fewer. `coordinator`, `processes`
    and `process` go together. Raises ValueError naming what is missing, contradictory or out of range.

    Attributes:
        mode: When to connect. "auto" connects where the environment names several processes: a Slurm step of
            more than one task, a TPU pod under GKE, several TPU slices. "on" lets jax find the others. On a
            Cloud TPU VM pod jax asks the metadata server; "auto" never does, because that hangs in a
            notebook. "off" never connects.
        coordinator: HOST:PORT of process 0, where the environment does not name it.
        processes: Number of processes; needed with `coordinator`.
        process: Number of this process, from 0; needed with `coordinator`.
    """

    mode: Literal["auto", "on", "off"] = "auto"
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def __post_init__(self):
        addresses = {name: getattr(self, name) for name in ("coordinator", "processes", "process")}
        missing = [name for name, value in addresses.items() if value is None]
        if len(missing) == len(addresses):
            return
        if missing:
            raise ValueError(f"distributed: {', '.join(addresses)} go together, missing {', '.join(missing)}")
        if self.mode == "off":
            raise ValueError(f"distributed: mode is off, but coordinator {self.coordinator!r} is given")
        assert self.coordinator is not None and self.processes is not None and self.process is not None
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"distributed: coordinator must be host:port, got {self.coordinator!r}")
        if not 0 <= self.process < self.processes:
            wanted = f"at least 0 and below processes {self.processes}"
            raise ValueError(f"distributed: process must be {wanted}, got {self.process}")


def start(config: DistributedConfig) -> None:
    """Connects this process to the others where the config says so, once; comes before all else of jax.

    Raises ValueError where jax finds no cluster to connect to, and RuntimeError where it already has devices,
    which nothing would join to the others. A coordinator that does not answer within five minutes ends the
    process: jax aborts it (status 134), and so it does within a minute after another process was killed.
    From here on SIGTERM no longer ends a process: jax takes it for a notice that
    `jax.experimental.multihost_utils.reached_preemption_sync_point` passes on.
    """
    import jax
    from jax._src.xla_bridge import backends_are_initialized  # no public name tells it without making devices

    arguments = _arguments(config, os.environ)
    if arguments is None or jax.distributed.is_initialized():
        return
    if backends_are_initialized():
        raise RuntimeError("distributed: start() comes before anything that asks jax for devices or computes")
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT)
        keep_none()
    except (ImportError, OSError, RuntimeError, ValueError) as error:  # as many as there are clusters to ask
        wanted = "give coordinator, processes and process, or mode off"
        if find_spec("libtpu") is None:  # without it jax doesn't ask whether this is a TPU's host
            wanted = f"on TPUs install the extra tpu; elsewhere {wanted}"
        reason = " ".join(str(error).split())
        raise ValueError(f"distributed: jax finds no cluster here ({reason}): {wanted}") from None


def is_main() -> bool:
    """Whether this is process 0, the one that prints and writes. Makes jax's devices."""
    import jax

    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here, up to a day; `name` must be the same in all.

    The processes meet at their coordinator, not in a collective of their devices, which gives up after
    seconds on some platforms.
    """
    import jax
    import orbax.checkpoint as ocp

    if jax.process_count() > 1:
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=24 * 3_600_000)


def _arguments(config: DistributedConfig, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is called with; None: not at all."""
    if config.coordinator is not None:
        # Without "deactivate" jax would still look for a cluster, to choose among the devices of this host.
        return {
            "coordinator_address": config.coordinator,
            "num_processes": config.processes,
            "process_id": config.process,
            "cluster_detection_method": "deactivate",
        }
    if config.mode == "off":
        return None
    if slurm_tasks(environ) > 1:
        return {"local_device_ids": _slurm_devices(environ)}
    return {} if config.mode == "on" or is_tpu_pod(environ) else None


def slurm_tasks(environ: Mapping[str, str]) -> int:
    """Tasks of this Slurm step, 0 outside any: the script of a job runs once, whatever it says of tasks."""
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    return int(environ["SLURM_NTASKS"]) if all(name in environ for name in needed) else 0


def _slurm_devices(environ: Mapping[str, str]) -> list[int] | None:
    """All GPUs of the node for the only task on it, for which jax would choose one; None: as jax chooses."""
    alone = environ.get("SLURM_STEP_NUM_NODES") == environ["SLURM_NTASKS"]
    return list(range(int(environ.get("SLURM_GPUS_ON_NODE", "0")))) or None if alone else None


def is_tpu_pod(environ: Mapping[str, str]) -> bool:
    """Whether GKE names several TPU hosts, or several slices, and jax is to use them."""
    if "tpu" not in (environ.get("JAX_PLATFORMS") or "tpu"):
        return False
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    return "," in hosts or int(environ.get("MEGASCALE_NUM_SLICES") or 1) > 1
