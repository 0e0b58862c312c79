"""Training in processes of its own, for real: killed ones, and several that meet over loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli_files import random_llama, triple
from safetensors.numpy import load_file

from rationalyst_jax.lm.weights.hf import save_llama
from rationalyst_jax.mine.store import Provenance, write_filtered
from rationalyst_jax.world.vocabulary import make_tokenizer

SETTINGS = {"batch_examples": 4, "row_length": 64, "microbatch_rows": 1, "save_every": 3, "validate_every": 3}
TRAIN = "train --rationales rationales.parquet --model model --prompts world --run_dir"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("multihost")
    tokenizer = make_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    model = random_llama(len(tokenizer), tie_embeddings=True, bos_token_id=bos, eos_token_id=eos)
    save_llama(model, root / "model")
    tokenizer.save_pretrained(root / "model")
    rows = [triple(f"document {i // 2}", i, 1.0) for i in range(60)]
    write_filtered(root / "rationales.parquet", rows, Provenance("annotator", "world-1", {}))
    return root


def start(folder: Path, run_dir: str, steps: int, processes: int, mesh: str) -> list[subprocess.Popen[str]]:
    """The processes of a run on eight simulated devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = "".join(f" --train.{name} {value}" for name, value in SETTINGS.items())
    command = f"{TRAIN} {run_dir} {settings} --train.steps {steps} {mesh}"
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(8 // processes)}
    started = []
    for process in range(processes):
        place = f" --distributed.coordinator 127.0.0.1:{port} --distributed.processes {processes}"
        place += f" --distributed.process {process}"
        program = [sys.executable, "-m", "rationalyst_jax.cli.main", *command.split()]
        program += place.split() if processes > 1 else []
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(program, cwd=folder, env=environ, **pipes))
    return started


def finish(started: list[subprocess.Popen[str]], code: int = 0) -> list[str]:
    """What each process printed (Gloo's threads cut up each other's lines); all must end with that status."""
    texts = []
    for process in started:
        out, error = process.communicate(timeout=300)
        assert process.returncode == code, error
        texts.append(out)
    return texts


def losses(run_dir: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows] + [row["val_loss"] for row in rows if "val_loss" in row]


@pytest.mark.parametrize(
    "mesh", [pytest.param("", marks=pytest.mark.slow), "--train.mesh.fsdp 4 --train.mesh.replica 2"]
)
def test_two_processes_of_four_devices_train_as_one_of_eight(mesh, folder):
    name = f"run{len(mesh)}"
    finish(start(folder, f"{name}/one", 6, 1, mesh))
    first, second = finish(start(folder, f"{name}/two", 6, 2, mesh))
    assert "loss" in first and "loss" not in second  # process 0 alone prints
    one, two = folder / name / "one", folder / name / "two"
    assert len(losses(one)) > 6
    np.testing.assert_allclose(losses(two), losses(one), rtol=0, atol=1e-5)
    weights = [load_file(run / "hf/model.safetensors") for run in (one, two)]
    for key, value in weights[0].items():
        np.testing.assert_allclose(weights[1][key], value, atol=1e-5)
    assert sorted(p.name for p in two.iterdir()) == sorted(p.name for p in one.iterdir())


def steps_done(run_dir: Path) -> int:
    metrics = run_dir / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def wait_for(run_dir: Path, steps: int, processes: list[subprocess.Popen[str]]) -> None:
    while steps_done(run_dir) < steps:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)


def exported(run_dir: Path) -> bytes:
    return (run_dir / "hf/model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_killed_three_times_ends_in_the_same_bits(folder):
    finish(start(folder, "whole", 120, 1, ""))
    draws, run_dir = np.random.default_rng(), folder / "killed"
    done = [0]
    for _ in range(3):
        (process,) = start(folder, "killed", 120, 1, "")
        wait_for(run_dir, done[-1] + int(draws.integers(1, 30)), [process])
        time.sleep(draws.uniform(0, 0.1))
        process.kill()
        finish([process], code=-signal.SIGKILL)
        done.append(steps_done(run_dir))
    assert done[-1] < 120
    finish(start(folder, "killed", 120, 1, ""))
    assert exported(run_dir) == exported(folder / "whole"), f"killed after steps {done[1:]}"
    assert steps_done(run_dir) == 120


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_at_one_step_and_they_go_on_in_the_same_bits(folder):
    finish(start(folder, "straight", 400, 2, ""))
    both, run_dir = start(folder, "stopped", 400, 2, ""), folder / "stopped"
    wait_for(run_dir, 5, both)
    both[1].send_signal(signal.SIGTERM)
    finish(both, code=75)
    assert steps_done(run_dir) < 400
    finish(start(folder, "stopped", 400, 2, ""))
    assert exported(run_dir) == exported(folder / "straight")
