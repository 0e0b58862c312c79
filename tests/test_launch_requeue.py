"""launch/slurm.sbatch with stand-ins for srun and scontrol: which statuses queue a job again."""

import os
import subprocess

import pytest
from launch_machines import LAUNCH, script

# Says what Slurm's own says of tasks that failed, then ends with the highest status.
SRUN = """#!/usr/bin/env bash
highest=0
for status in $STATUSES; do
    case $status in
    0) ;;
    134) echo "srun: error: n1: task 1: Aborted" >&2 ;;
    137) echo "srun: error: n1: task 1: Killed" >&2 ;;
    143) echo "srun: error: n1: task 1: Terminated" >&2 ;;
    *) echo "srun: error: n1: task 1: Exited with exit code $status" >&2 ;;
    esac
    [ "$status" -lt "$highest" ] || highest=$status
done
exit "$highest"
"""


@pytest.mark.parametrize(
    ("statuses", "restarts", "code", "requeued"),
    [
        ("0 0", 0, 0, False),
        ("1", 0, 1, False),
        ("2", 0, 2, False),
        ("139", 0, 139, False),
        ("75 75", 0, 75, True),
        ("75 0", 3, 75, True),
        ("137 134", 0, 137, True),
        ("134 0", 0, 134, True),
        ("143", 0, 143, True),
        ("134 1", 0, 1, False),  # the others ended because of the one that failed
        ("75 2", 0, 2, False),
        ("137", 50, 137, False),
    ],
)
def test_a_job_is_queued_again_unless_a_task_failed(statuses, restarts, code, requeued, tmp_path):
    script(tmp_path / "srun", SRUN)
    script(tmp_path / "scontrol", '#!/bin/sh\necho "scontrol $*"\nexit 1\n')  # so that the script goes on
    env = os.environ | {"PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]]), "STATUSES": statuses}
    env |= {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    command = ["bash", LAUNCH / "slurm.sbatch", "train"]
    ran = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == code
    assert f"rationalyst ended with {code}, after {restarts} restarts\n" in ran.stdout
    assert ("scontrol requeue 7\n" in ran.stdout) == requeued
