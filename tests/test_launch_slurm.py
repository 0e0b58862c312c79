"""launch/slurm.sbatch on a real Slurm of two nodes, one partition of which preempts another."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_files import small_llama, triple
from launch_machines import LAUNCH, ROOT, environment

from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.lm.weights.hf import save_llama
from rationalyst_jax.mine.store import Provenance, write_filtered
from rationalyst_jax.world.corpus import documents
from rationalyst_jax.world.vocabulary import make_tokenizer

pytestmark = pytest.mark.slow  # minutes


def told(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def partitions() -> tuple[str, str]:
    """A partition whose jobs are requeued when a job of the other partition wants their nodes."""
    if shutil.which("sinfo") is None:
        pytest.skip("needs Slurm: there is no sinfo here")
    said = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True)
    if said.returncode:
        pytest.skip(f"needs a Slurm that answers: {said.stderr.strip()}")
    tiers: dict[int, str] = {}
    for line in told("scontrol", "--oneliner", "show", "partition").splitlines():
        fields = dict(re.findall(r"(\w+)=(\S+)", line))
        if int(fields["TotalNodes"]) >= 2:
            tiers[int(fields["PriorityTier"])] = fields["PartitionName"]
    if len(tiers) < 2:
        pytest.skip("needs a Slurm with two partitions of two nodes, one of which preempts the other")
    return tiers[min(tiers)], tiers[max(tiers)]


class Jobs:
    """Jobs of launch/slurm.sbatch with an environment that is there, submitted from a folder."""

    def __init__(self, folder: Path, partition: str, rationalyst: str):
        self.folder = folder
        self.partition = partition
        self.env = environment(folder, rationalyst=rationalyst) | {"WORKER": str(LAUNCH / "worker.sh")}

    def submit(self, options: str, command: str, **settings: str) -> str:
        words = f"--partition={self.partition} --cpus-per-task=1 {options}".split()
        sbatch = ["sbatch", "--parsable", *words, LAUNCH / "slurm.sbatch", *command.split()]
        env = self.env | settings
        return subprocess.run(
            sbatch, env=env, cwd=self.folder, check=True, capture_output=True, text=True
        ).stdout.strip()

    def field(self, job: str, name: str) -> str:
        return re.findall(rf"\b{name}=(\S+)", told("scontrol", "show", "job", job))[0]

    def ended(self, job: str) -> tuple[str, int]:
        """The state in which a job ends for good, and how often it was started again."""
        wait_for(lambda: self.field(job, "JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"))
        return self.field(job, "JobState"), int(self.field(job, "Restarts"))

    def log(self, job: str) -> str:
        path = self.folder / f"rationalyst-{job}.log"
        return path.read_text() if path.exists() else ""


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits for up to a quarter of an hour, on a busy machine."""
    for _ in range(1800):
        if condition():
            return
        time.sleep(0.5)
    raise AssertionError("waited for too long")


# Its first start works until it is told to stop, its second is done.
STOPS_ONCE = """#!/usr/bin/env bash
echo "rationalyst $*"
[ ! -e second ] || exit 0
touch second
trap 'exit 75' TERM
while true; do sleep 0.1; done
"""


@pytest.fixture
def jobs(tmp_path, partitions) -> Callable[[str], Jobs]:
    return lambda rationalyst: Jobs(tmp_path, partitions[0], rationalyst)


def test_before_its_time_is_over_a_job_stops_and_is_queued_again(jobs):
    stops = jobs(STOPS_ONCE)
    job = stops.submit("--time=2 --signal=TERM@90", "train --prompts world")
    assert stops.ended(job) == ("COMPLETED", 1)
    log = stops.log(job)
    assert log.count("rationalyst train --prompts world\n") == 2
    assert "rationalyst ended with 75, after 0 restarts" in log
    assert "rationalyst ended with 0, after 1 restarts" in log


def test_an_error_is_not_tried_again(jobs):
    fails = jobs("#!/bin/sh\nexit 1\n")
    job = fails.submit("--time=5", "train")
    assert fails.ended(job) == ("FAILED", 0)
    assert "rationalyst ended with 1, after 0 restarts" in fails.log(job)


def test_restarts_have_a_bound(jobs):
    stops = jobs("#!/bin/sh\nexit 75\n")
    job = stops.submit("--time=5", "train", MAX_RESTARTS="1")
    assert stops.ended(job) == ("FAILED", 1)


def test_a_job_that_is_cancelled_is_not_queued_again(jobs):
    """Though the command hears SIGTERM and ends with 75."""
    stops = jobs(STOPS_ONCE)
    job = stops.submit("--time=5", "train")
    wait_for(lambda: "rationalyst train" in stops.log(job))
    told("scancel", job)
    assert stops.ended(job) == ("CANCELLED", 0)
    time.sleep(5)  # in which the script might ask for a requeue
    assert stops.ended(job) == ("CANCELLED", 0)


# ---- Training ----

TRAIN = (
    "train --rationales rationales.parquet --model model --prompts world --train.steps 150 "
    "--train.batch_examples 4 --train.row_length 64 --train.microbatch_rows 1 --train.save_every 50 "
    "--train.validate_every 50 --run_dir"
)


@pytest.fixture
def training(jobs, tmp_path) -> Jobs:
    """The real command, with a small model and its rationales."""
    tokenizer = make_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    save_llama(small_llama(len(tokenizer), bos_token_id=bos, eos_token_id=eos), tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [triple(f"document {i // 2}", i, 1.0) for i in range(60)]
    write_filtered(tmp_path / "rationales.parquet", rows, Provenance("annotator", "world-1", {}))
    command = f'PYTHONPATH="{ROOT}" exec "{sys.executable}" -m rationalyst_jax.cli.main "$@"'
    real = jobs(f"#!/bin/sh\n{command}\n")
    real.env |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": os.environ["XLA_FLAGS"]}
    return real


def test_training_over_two_nodes_is_preempted_goes_on_and_ends_in_the_same_bits(training, partitions):
    whole = training.submit("--nodes=2 --time=30", f"{TRAIN} whole")
    assert training.ended(whole) == ("COMPLETED", 0), training.log(whole)
    job = training.submit("--nodes=2 --time=30", f"{TRAIN} preempted")
    metrics = training.folder / "preempted" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 5)
    told(
        *("sbatch", f"--partition={partitions[1]}", "--nodes=2", "--exclusive"),
        *("--output=/dev/null", "--wrap=sleep 1"),
    )
    assert training.ended(job) == ("COMPLETED", 1), training.log(job)
    assert "ended with 75, after 0 restarts" in training.log(job)
    assert metrics.read_text().count("\n") == 150
    weights = [training.folder / run / "hf" / "model.safetensors" for run in ("whole", "preempted")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


MINE = (
    "mine --documents documents.jsonl --model world --prompts world --annotate.block 4 "
    "--annotate.method insert --annotate.places line --annotate.max_rationale_tokens 16 --out"
)


def test_mining_is_divided_between_two_tasks_and_has_the_bytes_of_one(training):
    write_rows(training.folder / "documents.jsonl", documents(0, 12))
    one = training.submit("--nodes=1 --time=30", f"{MINE} one")
    assert training.ended(one) == ("COMPLETED", 0), training.log(one)
    two = training.submit("--nodes=2 --time=30", f"{MINE} two")
    assert training.ended(two) == ("COMPLETED", 0), training.log(two)
    assert re.search(r"shard [01]/2 is done, [01]/2 not yet|another one has made", training.log(two))
    for name in ("annotations.jsonl", "triples.parquet"):
        made = [(training.folder / folder / name).read_bytes() for folder in ("one", "two")]
        assert made[0] == made[1], name
