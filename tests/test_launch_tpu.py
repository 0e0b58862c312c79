"""launch/tpu.sh with a stand-in for gcloud: what is queued, what starts again, and what is deleted."""

import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launch_machines import LAUNCH, environment, launch, script

# States of the TPUs are in `states`, one a look; the last one stays. Statuses of the command are in
# `statuses`, one start a line, with a status for each machine; "lost" has said nothing, and "none" is a slice
# that gcloud leaves out. `faults` has the calls that fail, one a line, each once.
GCLOUD = r"""#!/usr/bin/env bash
shift 3 # compute tpus queued-resources
next() { head -n1 "$1"; [ "$(wc -l <"$1")" = 1 ] || sed -i 1d "$1"; }
echo "$*" >>calls
if [ "$(head -n1 faults 2>/dev/null)" = "$1" ]; then sed -i 1d faults; echo "UNAVAILABLE: $1" >&2; exit 1; fi
case "$*" in
describe*failedData*) echo "no quota" ;;
describe*)
    if [ ! -e there ]; then echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; fi
    next states
    ;;
create*--nonsense*) echo "unrecognized arguments: --nonsense" >&2; exit 2 ;;
create*) touch there ;;
delete*) rm there ;;
ssh*)
    code=0
    for status in $(next statuses); do
        if [ "$status" = none ]; then echo "WARNING: Could not prepare all 2 nodes" >&2; continue; fi
        if [ "$status" = lost ]; then status=255; else echo "tpu.sh: t-w-$status ended with $status"; fi
        [ "$code" != 0 ] || code=$status
    done
    exit "$code"
    ;;
esac
"""


class Cloud:
    """A folder in which tpu.sh runs, with a gcloud of its own."""

    def __init__(self, folder: Path):
        script(folder / "bin" / "gcloud", GCLOUD)
        self.folder = folder
        path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
        self.env = os.environ | {"PATH": path, "POLL": "0"}
        self.write("states", "ACTIVE")

    def write(self, name: str, *lines: str) -> None:
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))

    def tpu(self, line: str, **settings: str) -> subprocess.CompletedProcess:
        return launch("tpu.sh", *line.split(), env=self.env | settings, cwd=self.folder)

    @property
    def calls(self) -> list[str]:
        """All calls of gcloud but looks at the state."""
        calls = self.folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [line for line in lines if line.startswith(("create", "delete", "scp", "ssh"))]

    @property
    def done(self) -> list[str]:
        return [line.split()[0] for line in self.calls if not line.startswith("scp")]


@pytest.fixture
def cloud(tmp_path) -> Cloud:
    return Cloud(tmp_path)


RUN = "run t --zone=z --accelerator-type=v6e-16 --spot -- train --config llama3-8b-train"


def test_a_command_that_stopped_starts_again_and_the_tpus_go_when_it_is_done(cloud):
    cloud.write("statuses", "75 75", "0 0")
    ran = cloud.tpu(RUN)
    assert ran.returncode == 0, ran.stderr
    assert cloud.done == ["create", "ssh", "ssh", "delete"]
    assert "tpu.sh: ended with 75, starts again" in ran.stderr


@pytest.mark.parametrize("statuses", ["134 137", "143", "0 lost"])
def test_a_machine_that_was_lost_is_no_reason_to_stop(cloud, statuses):
    cloud.write("statuses", statuses, "0 0")
    assert cloud.tpu(RUN).returncode == 0
    assert cloud.done == ["create", "ssh", "ssh", "delete"]


def test_a_slice_that_gcloud_leaves_out_is_not_done(cloud):
    """gcloud warns, and returns 0 when the other slices have."""
    cloud.write("statuses", "0 none", "0 0")
    ran = cloud.tpu(RUN)
    assert ran.returncode == 0, ran.stderr
    assert cloud.done == ["create", "ssh", "ssh", "delete"]
    assert "tpu.sh: ended with 255, starts again" in ran.stderr


@pytest.mark.parametrize(
    ("statuses", "code"), [("1", 1), ("2", 2), ("134 1", 1), ("75 2 lost", 2), ("139", 139)]
)
def test_an_error_of_any_machine_is_the_end_and_the_tpus_stay(cloud, statuses, code):
    cloud.write("statuses", statuses, "0")
    ran = cloud.tpu(RUN)
    assert ran.returncode == code
    assert cloud.done == ["create", "ssh"]
    assert ran.stderr.endswith(f"tpu.sh: ended with {code}; t is kept: tpu.sh stop t deletes it\n")


def test_tpus_that_were_taken_away_are_queued_again(cloud):
    waiting = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    cloud.write("states", *waiting, "SUSPENDING", "SUSPENDED", *waiting)
    cloud.write("statuses", "lost", "0")
    assert cloud.tpu(RUN).returncode == 0
    assert cloud.done == ["create", "ssh", "delete", "create", "ssh", "delete"]


def test_tpus_that_are_there_are_taken(cloud):
    (cloud.folder / "there").touch()
    cloud.write("statuses", "0")
    assert cloud.tpu(RUN).returncode == 0
    assert cloud.done == ["ssh", "delete"]


def test_starts_without_progress_have_a_bound(cloud):
    cloud.write("statuses", "75")
    ran = cloud.tpu(RUN, TRIES="3")
    assert ran.returncode == 75
    assert cloud.done == ["create", "ssh", "ssh", "ssh"]
    assert ran.stderr.endswith("tpu.sh: 3 starts without progress; t is kept\n")


def test_progress_resets_the_bound(cloud):
    cloud.write("statuses", *["75"] * 4, "0")
    assert cloud.tpu(RUN, TRIES="2", PROGRESS="grep -c ^ssh calls").returncode == 0
    cloud.write("statuses", *["75"] * 4, "0")
    cloud.write("calls")
    assert cloud.tpu(RUN, TRIES="2", PROGRESS="grep -c ^create calls").returncode == 75
    assert cloud.done == ["create", "ssh", "ssh"]


def test_tpus_that_cannot_be_had_are_told(cloud):
    cloud.write("states", "PROVISIONING", "FAILED")
    ran = cloud.tpu(RUN)
    assert (ran.returncode, ran.stderr) == (1, "tpu.sh: t: no quota\n")
    assert cloud.done == ["create"]


def test_a_gcloud_that_does_not_answer_is_told_and_queues_nothing(cloud):
    cloud.write("faults", "describe")
    ran = cloud.tpu(RUN)
    assert (ran.returncode, cloud.calls) == (1, [])
    assert ran.stderr == "UNAVAILABLE: describe\ntpu.sh: gcloud cannot say whether there is a t\n"


@pytest.mark.parametrize(
    ("states", "faults", "done"),
    [
        ("ACTIVE SUSPENDED", "create create", "create create create ssh delete create ssh delete"),
        ("ACTIVE SUSPENDED SUSPENDED", "delete", "create ssh delete delete create ssh delete"),
        ("ACTIVE ACTIVE ACTIVE", "delete", "create ssh ssh delete delete"),
    ],
    ids=["create", "delete", "delete at the end"],
)
def test_a_call_of_gcloud_that_fails_is_made_again(cloud, states, faults, done):
    cloud.write("states", *states.split(), "ACTIVE")
    cloud.write("statuses", "lost", "0")
    cloud.write("faults", *faults.split())
    ran = cloud.tpu(RUN)
    assert ran.returncode == 0, ran.stderr
    assert " ".join(cloud.done) == done


@pytest.mark.parametrize("verb", ["create", "delete", "describe"])
def test_a_call_of_gcloud_that_always_fails_is_named_and_ends_the_run(cloud, verb):
    cloud.write("states", "ACTIVE", "SUSPENDED")
    cloud.write("statuses", "lost")
    fails = f'[ "$1" = {verb} ] && {{ [ {verb} = create ] || [ -e statuses.seen ]; }} && exit 1\n'
    script(
        cloud.folder / "bin" / "gcloud",
        GCLOUD.replace("case", f"{fails}case", 1).replace("ssh*)", "ssh*) touch statuses.seen\n", 1),
    )
    ran = cloud.tpu(RUN)
    assert ran.returncode == 1
    assert ran.stderr.endswith(f"tpu.sh: t: gcloud failed 10 times in a row, the last time to {verb} it\n")
    assert [line.split()[0] for line in (cloud.folder / "calls").read_text().splitlines()].count(verb) >= 10


def test_what_gcloud_refuses_ends_with_its_status(cloud):
    ran = cloud.tpu("run t --zone=z --nonsense -- train")  # at once: another try would be refused as well
    assert (ran.returncode, ran.stderr) == (2, "unrecognized arguments: --nonsense\n")
    assert cloud.done == ["create"]


@pytest.mark.parametrize(
    ("line", "created"),
    [
        (
            "--zone z --accelerator-type=v5litepod-8",
            "--accelerator-type=v5litepod-8 --node-id=t --runtime-version=v2-alpha-tpuv5-lite "
            "--zone=z --quiet",
        ),
        (
            "--accelerator-type v5p-32 --node-count=2 --project=p",
            "--accelerator-type v5p-32 --node-count=2 --node-prefix=t --runtime-version=v2-alpha-tpuv5 "
            "--project=p --quiet",
        ),
        ("--runtime-version=r --spot", "--runtime-version=r --spot --node-id=t --quiet"),
    ],
)
def test_the_options_are_those_of_gcloud(cloud, line, created):
    assert cloud.tpu(f"queue t {line}").returncode == 0
    assert cloud.calls == [f"create t {created}"]
    assert cloud.tpu("stop t --zone z").returncode == 0
    assert cloud.calls[1:] == ["delete t --force --zone=z --quiet"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "the first word must be queue, run or stop, got ''"),
        ("start t", "the first word must be queue, run or stop, got 'start'"),
        ("stop", "the second word must be a name of a-z, 0-9 and -, got ''"),
        ("run T_1 -- train", "the second word must be a name of a-z, 0-9 and -, got 'T_1'"),
        ("run t --zone=z", "run needs -- and what follows rationalyst"),
        ("run t --", "run needs -- and what follows rationalyst"),
        ("queue t -- train", "queue takes no command"),
        ("stop t --zone", "--zone needs a value"),
    ],
)
def test_a_mistake_in_the_command_line_is_one_line_and_asks_nobody(cloud, line, says):
    ran = cloud.tpu(line)
    assert (ran.returncode, ran.stderr) == (2, f"tpu.sh: {says}\n")
    assert not (cloud.folder / "calls").exists()


# ---- What a machine does ----

# Sends and starts for real, each machine in a folder of its own.
MACHINES = r"""#!/usr/bin/env bash
shift 3
case "$1" in
scp) for machine in w0 w1; do mkdir -p "$machine" && cp "$2" "$machine/${3#*:}"; done ;;
ssh)
    for word in "$@"; do [[ $word != --command=* ]] || command=${word#--command=}; done
    for machine in w0 w1; do (cd "$machine" && bash -c "$command") & pids+=($!); done
    for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
    exit "${code-0}"
    ;;
describe) echo ACTIVE ;;
esac
"""


@pytest.fixture
def machines(cloud) -> Cloud:
    script(cloud.folder / "bin" / "gcloud", MACHINES)
    cloud.env |= environment(cloud.folder) | {"PATH": cloud.env["PATH"]}
    return cloud


def test_each_machine_sets_up_gets_this_checkout_and_runs_the_command(machines):
    line = ["run", "t", "--", "train", "--prompts", "a b; $HOME"]
    env = machines.env | {"SETUP": "touch mounted; export STATUSES=statuses"}
    for machine in ("w0", "w1"):
        (machines.folder / machine).mkdir()
    machines.write("w0/statuses", "75")
    machines.write("w1/statuses", "134")
    ran = launch("tpu.sh", *line, env=env, cwd=machines.folder)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("rationalyst train --prompts a b; $HOME\n") == 4
    assert sorted(line[-2:] for line in ran.stdout.splitlines() if " ended with " in line) == [
        *(" 0", " 0", "34", "75"),
    ]
    for machine in ("w0", "w1"):
        assert (machines.folder / machine / "mounted").exists()
        sent = machines.folder / machine / "rationalyst" / "launch" / "worker.sh"
        assert sent.read_bytes() == (LAUNCH / "worker.sh").read_bytes()


def test_a_machine_that_cannot_be_set_up_is_an_error(machines):
    ran = machines.tpu("run t -- train", SETUP="false")
    assert ran.returncode == 1 and "rationalyst train" not in ran.stdout


def test_what_the_setup_leaves_running_does_not_hold_the_next_start(machines):
    """As gcsfuse, which stays for as long as its folder is mounted."""
    leaves = "sleep 1000 >/dev/null 2>&1 & echo $! >daemon; export SAID=yes"
    script(machines.folder / "bin" / "gcloud", MACHINES.replace("w0 w1", "w0"))
    environment(machines.folder, rationalyst='#!/bin/sh\necho "SAID=$SAID"\n')
    ran = machines.tpu("run t -- train", SETUP=leaves)
    daemon = int((machines.folder / "w0" / "daemon").read_text())
    try:
        assert ran.returncode == 0 and "SAID=yes\n" in ran.stdout, ran.stderr
        with (machines.folder / "w0" / "rationalyst.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(daemon, signal.SIGTERM)


def test_what_an_earlier_try_left_running_is_told_to_stop(machines):
    """Its connection was lost, and the machine does not know."""
    waits = """#!/usr/bin/env bash
[ ! -e second ] || exit 0
touch second
trap 'echo saved >>saved; exit 75' TERM
while true; do sleep 0.02; done
"""
    environment(machines.folder, rationalyst=waits)
    script(machines.folder / "bin" / "gcloud", MACHINES.replace("w0 w1", "w0"))
    command = [LAUNCH / "tpu.sh", "run", "t", "--", "train"]
    first = subprocess.Popen(command, env=machines.env, cwd=machines.folder)
    while not (machines.folder / "w0" / "second").exists():
        assert first.poll() is None
        time.sleep(0.02)
    second = machines.tpu("run t -- train")
    assert second.returncode == 0, second.stderr
    assert (machines.folder / "w0" / "saved").read_text() == "saved\n"
    assert first.wait(timeout=60) == 0
