"""Start-up over several processes: what the environment leads to, and two real processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from rationalyst_jax.lm.devices.distributed import DistributedConfig, barrier, is_main, start

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
SLURM |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"}
EXPLICIT = {"coordinator_address": "n1:9", "num_processes": 4, "process_id": 3}
EXPLICIT |= {"cluster_detection_method": "deactivate"}


def calls(monkeypatch, mode, environ, devices_made=False, initialized=False) -> list[dict]:
    """What jax.distributed.initialize is called with, in a process that has this environment and no other."""
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "TPU_", "MEGASCALE_")):
            monkeypatch.delenv(name)
    for name, value in {"JAX_PLATFORMS": "", **environ}.items():
        monkeypatch.setenv(name, value)
    found = []

    def initialize(heartbeat_timeout_seconds: int, **arguments):
        assert heartbeat_timeout_seconds <= 60
        found.append(arguments)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: initialized)
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: devices_made)
    start(DistributedConfig("auto", "n1:9", 4, 3) if mode == "explicit" else DistributedConfig(mode))
    return found


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, []),
        (SLURM, [{"local_device_ids": None}]),
        # jax would use one GPU of eight where a node has one task.
        (SLURM | {"SLURM_GPUS_ON_NODE": "4"}, [{"local_device_ids": [0, 1, 2, 3]}]),
        (SLURM | {"SLURM_STEP_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "2"}, [{"local_device_ids": None}]),
        (SLURM | {"SLURM_NTASKS": "1"}, []),
        # The script of a job sees the number of its tasks, but runs once.
        ({name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}, []),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}, [{}]),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "a"}, [{}]),
        # Kaggle's and Colab's one host.
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, []),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, [{}]),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "1"}, []),
        ({"MEGASCALE_NUM_SLICES": ""}, []),
    ],
)
def test_auto_connects_where_the_environment_names_several_processes(monkeypatch, environ, expected):
    assert calls(monkeypatch, "auto", environ) == expected


def test_a_tpu_host_told_to_compute_on_its_cpu_stays_alone(monkeypatch):
    environ = {"TPU_WORKER_HOSTNAMES": "a,b"}
    assert calls(monkeypatch, "auto", environ | {"JAX_PLATFORMS": "cpu"}) == []
    assert calls(monkeypatch, "auto", environ | {"JAX_PLATFORMS": "tpu,cpu"}) == [{}]


def test_on_leaves_detection_to_jax_and_off_never_connects(monkeypatch):
    assert calls(monkeypatch, "on", {}) == [{}]
    assert calls(monkeypatch, "on", SLURM) == [{"local_device_ids": None}]
    assert calls(monkeypatch, "off", SLURM | {"TPU_WORKER_HOSTNAMES": "a,b"}) == []


def test_what_is_given_wins_over_the_environment(monkeypatch):
    assert calls(monkeypatch, "explicit", SLURM) == [EXPLICIT]


def test_a_process_connects_once(monkeypatch):
    assert calls(monkeypatch, "explicit", {}, devices_made=True, initialized=True) == []


def test_devices_made_too_early_are_an_error_only_where_there_is_something_to_connect_to(monkeypatch):
    assert calls(monkeypatch, "auto", {}, devices_made=True) == []
    with pytest.raises(RuntimeError, match=r"start\(\) comes before"):
        calls(monkeypatch, "explicit", {}, devices_made=True)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("coordinator_address should be defined."),
        ModuleNotFoundError("No module named 'requests'"),  # a pod's host without the tpu extra
        OSError("metadata.google.internal:\ncannot be reached"),
        RuntimeError("Failed to recognize coordinator address"),
    ],
)
def test_no_cluster_to_be_found_is_one_line(error, monkeypatch):
    def initialize(**arguments):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    module = "rationalyst_jax.lm.devices.distributed"
    for libtpu, wanted in ((None, "on TPUs install the extra tpu; elsewhere give"), ("found", "give")):
        monkeypatch.setattr(f"{module}.find_spec", lambda name, found=libtpu: found)
        with pytest.raises(ValueError, match=rf"finds no cluster here \([^\n]+\): {wanted} coordinator"):
            start(DistributedConfig("on"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "a:1"}, "missing processes, process"),
        ({"process": 0, "processes": 2}, "missing coordinator"),
        ({"coordinator": "a", "processes": 2, "process": 0}, "host:port, got 'a'"),
        ({"coordinator": ":1", "processes": 2, "process": 0}, "host:port, got ':1'"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "below processes 2, got 2"),
        ({"coordinator": "a:1", "processes": 2, "process": -1}, "got -1"),
        ({"coordinator": "a:1", "processes": 2, "process": 0, "mode": "off"}, "mode is off"),
    ],
)
def test_half_an_address_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        DistributedConfig(**given)


def test_one_process_is_main_and_waits_for_nobody():
    assert is_main()
    barrier("alone")


# ---- Two processes over loopback, four devices each ----

START = """
import os, signal, sys, time
from pathlib import Path
import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec as Spec
from rationalyst_jax.lm.devices.distributed import DistributedConfig, barrier, is_main, start
coordinator, process = sys.argv[1], int(sys.argv[2])
config = DistributedConfig("auto", coordinator, 2, process)
start(config)
start(config)

def say(*words):
    Path(sys.argv[3]).write_text(" ".join(map(str, words)))
"""


def said(program: str, folder: Path) -> list[str]:
    """What each of two processes says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START + program, coordinator, str(process), folder / str(process)],
            env=environ,
            stdout=subprocess.DEVNULL,  # Gloo, which moves the data, reports its connections
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 0, error
    return [(folder / str(process)).read_text() for process in range(2)]


def test_two_processes_compute_together(tmp_path):
    program = """
mesh = Mesh(jax.devices(), "i")
total = jax.shard_map(
    lambda: jax.lax.psum(jax.lax.axis_index("i") + 1, "i"), mesh=mesh, in_specs=(), out_specs=Spec()
)
say(jax.device_count(), jax.local_device_count(), int(jax.jit(total)()), is_main())
barrier("end")
"""
    assert said(program, tmp_path) == ["8 4 36 True", "8 4 36 False"]


def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path):
    program = """
for step in range(3000):
    if step == 5 and not is_main():
        os.kill(os.getpid(), signal.SIGTERM)
    if multihost_utils.reached_preemption_sync_point(step):
        break
    time.sleep(0.01 + 0.005 * process)
say(step)
barrier("saved")
"""
    stop, other_stop = said(program, tmp_path)
    assert stop == other_stop and 5 < int(stop) < 2999
