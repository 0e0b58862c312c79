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
from cli_files import small_llama, triple
from safetensors.numpy import load_file

from rationalyst_jax.lm.weights.hf import save_llama
from rationalyst_jax.mine.store import Provenance, write_filtered
from rationalyst_jax.world.vocabulary import make_tokenizer

SETTINGS = {"batch_examples": 4, "row_length": 64, "microbatch_rows": 1, "save_every": 3, "validate_every": 3}
TRAIN = "train --rationales rationales.parquet --model model --prompts world --run_dir"

COMMAND = """
import os, signal, sys, threading, time
from rationalyst_jax.cli.main import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("multihost")
    tokenizer = make_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    model = small_llama(len(tokenizer), tie_embeddings=True, bos_token_id=bos, eos_token_id=eos)
    save_llama(model, root / "model")
    tokenizer.save_pretrained(root / "model")
    rows = [triple(f"document {i // 2}", i, 1.0) for i in range(60)]
    write_filtered(root / "rationales.parquet", rows, Provenance("annotator", "world-1", {}))
    return root


def start(
    folder: Path, run_dir: str, steps: int, processes: int, mesh: str, program: str = COMMAND
) -> list[subprocess.Popen[str]]:
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
        arguments = [sys.executable, "-c", program, *command.split()]
        arguments += place.split() if processes > 1 else []
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(arguments, cwd=folder, env=environ, **pipes))
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
    draws = np.random.default_rng()
    run_dir = folder / "killed"
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
    both = start(folder, "stopped", 400, 2, "")
    run_dir = folder / "stopped"
    wait_for(run_dir, 5, both)
    both[1].send_signal(signal.SIGTERM)
    finish(both, code=75)
    assert steps_done(run_dir) < 400
    finish(start(folder, "stopped", 400, 2, ""))
    assert exported(run_dir) == exported(folder / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_goes_on(lost, folder):
    name = f"lost{lost}"
    both = start(folder, name, 40, 2, "")
    wait_for(folder / name, 5, both)
    both[lost].kill()
    finish([both[1 - lost]], code=-signal.SIGABRT)  # a shell calls it 134
    finish([both[lost]], code=-signal.SIGKILL)
    assert steps_done(folder / name) < 40
    finish(start(folder, name, 40, 2, ""))
    assert steps_done(folder / name) == 40


def signalled(name: str, act: str) -> str:
    """The command, which does something first where it calls `name` of the training loop."""
    patched = f"""
from rationalyst_jax.train import loop
real = loop.{name}
def first(*arguments, **options):
    {act}
    return real(*arguments, **options)
loop.{name} = first
"""
    return COMMAND.replace("sys.exit", patched + "sys.exit")


TERM = "os.kill(os.getpid(), signal.SIGTERM)"


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    ("where", "act"),
    [
        ("fit", TERM),  # the model is loaded, and nothing begun
        ("begin", TERM),
        ("_compiled", f"threading.Timer(0.1, lambda: {TERM}).start()"),  # while XLA has the main thread
        ("_result", TERM),
    ],
)
def test_sigterm_at_any_time_ends_a_short_run_which_goes_on(where, act, steps, folder):
    name = f"{where}{steps}"
    [stopped] = start(folder, name, steps, 1, "", signalled(where, act))
    _, error = stopped.communicate(timeout=300)
    assert stopped.returncode == 75 and "stopped by SIGTERM" in error
    finish(start(folder, name, steps, 1, ""))
    assert steps_done(folder / name) == steps


@pytest.mark.slow
def test_sigterm_while_two_processes_resume_stops_both(folder):
    both = start(folder, "resumed", 100, 2, "")
    run_dir = folder / "resumed"
    wait_for(run_dir, 5, both)
    both[1].send_signal(signal.SIGTERM)
    finish(both, code=75)
    done = steps_done(run_dir)
    act = f"(loop.jax.process_index() == 1 and {TERM}); time.sleep(3)"  # jax looks once a second
    finish(start(folder, "resumed", 100, 2, "", signalled("_compiled", act)), code=75)
    assert done < steps_done(run_dir) <= done + 3
