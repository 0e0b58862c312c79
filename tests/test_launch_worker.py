"""launch/worker.sh: the environment of one machine, and rationalyst in the script's place."""

import os
import re
import signal
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from launch_machines import LAUNCH, ROOT, environment, launch, script

from rationalyst_jax.lm.devices.chips import libtpu_init_args

WORKER = LAUNCH / "worker.sh"


def test_the_command_gets_its_arguments_and_its_status_is_the_scripts(tmp_path):
    (tmp_path / "statuses").write_text("75\n")
    env = environment(tmp_path) | {"STATUSES": str(tmp_path / "statuses")}
    ran = launch("worker.sh", "train", "--prompts", "a b", env=env, cwd=tmp_path)
    assert ran.returncode == 75
    assert "rationalyst train --prompts a b\n" in ran.stdout


def test_signals_reach_the_command_because_it_takes_the_scripts_place(tmp_path):
    waits = "#!/usr/bin/env bash\ntrap 'exit 75' TERM\necho $$\nwhile true; do sleep 0.02; done\n"
    env = environment(tmp_path, rationalyst=waits)
    with subprocess.Popen([WORKER, "train"], env=env, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout and int(worker.stdout.readline()) == worker.pid
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=60) == 75


# ---- Flags of libtpu ----


@pytest.fixture
def metadata() -> Iterator[tuple[str, list[str]]]:
    """HOST:PORT of a metadata server as a machine of Cloud TPU has it, and the paths it was asked for."""
    asked: list[str] = []

    class Metadata(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if self.headers.get("Metadata-Flavor") == "Google" else 403)
            self.end_headers()
            self.wfile.write(b"v5p-8")

        def log_message(self, format, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()


def flags(env: dict[str, str], folder: Path) -> str:
    """What libtpu is told on a machine."""
    ran = launch("worker.sh", "train", env=env, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()[-1].removeprefix("LIBTPU_INIT_ARGS=")


def test_on_gke_the_environment_says_which_flags_libtpu_needs(tmp_path):
    env = environment(tmp_path, "tpu")
    assert flags(env | {"TPU_ACCELERATOR_TYPE": "v6e-16"}, tmp_path) == libtpu_init_args("v6e-16") != ""
    assert flags(env | {"TPU_ACCELERATOR_TYPE": "v5litepod-16"}, tmp_path) == ""


def test_on_cloud_tpu_the_metadata_server_says_it(tmp_path, metadata):
    address, asked = metadata
    env = environment(tmp_path, "tpu") | {"GCE_METADATA_IP": address}
    env.pop("TPU_ACCELERATOR_TYPE", None)
    assert flags(env, tmp_path) == libtpu_init_args("v5p-8") != ""
    assert asked == ["/computeMetadata/v1/instance/attributes/accelerator-type"]


def test_given_flags_are_kept_and_other_machines_have_none(tmp_path):
    env = environment(tmp_path, "tpu") | {"TPU_ACCELERATOR_TYPE": "v6e-16"}
    assert flags(env | {"LIBTPU_INIT_ARGS": "--mine=1"}, tmp_path) == "--mine=1"
    assert flags(env | {"LIBTPU_INIT_ARGS": ""}, tmp_path) == ""
    assert flags(environment(tmp_path), tmp_path) == "unset"


# ---- The environment ----

# Does as python3, its venv and its pip would, and writes down what pip was asked for.
PYTHON = """#!/usr/bin/env bash
case "$*" in
"-c "*) exit "${TOO_OLD:-0}" ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && ln -sf "$0" "$3/bin/rationalyst" ;;
"-m "*) echo "$*" >>"$ASKED" ;;
esac
"""


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    """Variables of a machine without an environment and without an accelerator."""
    script(tmp_path / "bin" / "python3", PYTHON)
    script(tmp_path / "bin" / "nvidia-smi", "#!/bin/sh\nexit 9\n")
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    own = {"PATH": path, "VENV": str(tmp_path / "venv"), "ASKED": str(tmp_path / "asked")}
    return {name: value for name, value in os.environ.items() if name != "EXTRA"} | own


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []


def test_the_environment_is_made_once_and_again_when_the_project_changes(tmp_path, bare):
    def start() -> None:
        assert launch("worker.sh", "--version", env=bare | {"EXTRA": "tpu"}, cwd=tmp_path).returncode == 0

    start()
    start()
    wanted = f"-m pip install --quiet -c {ROOT}/constraints.txt -e {ROOT}[tpu]"
    assert asked(tmp_path) == [wanted]
    os.utime(tmp_path / "venv" / "installed-tpu", (0, 0))  # older than pyproject.toml
    start()
    assert asked(tmp_path) == [wanted] * 2


def test_where_python_is_too_old_uv_brings_one(tmp_path, bare):
    script(tmp_path / "venv" / "bin" / "rationalyst", "#!/bin/sh\n")
    env = bare | {"EXTRA": "", "TOO_OLD": "1"}
    assert launch("worker.sh", "--version", env=env, cwd=tmp_path).returncode == 0
    venv = tmp_path / "venv"
    assert asked(tmp_path) == [
        "-m pip install --quiet --user uv",
        f"-m uv venv --quiet --allow-existing --python 3.12 {venv}",
        f"-m uv pip install --quiet --python {venv}/bin/python -c {ROOT}/constraints.txt -e {ROOT}",
    ]


def test_an_installation_that_fails_is_not_taken_for_done(tmp_path, bare):
    script(tmp_path / "bin" / "python3", PYTHON.replace('echo "$*" >>"$ASKED"', "exit 3"))
    assert launch("worker.sh", "--version", env=bare, cwd=tmp_path).returncode == 3
    assert not [*(tmp_path / "venv").glob("installed*")]


@pytest.mark.skipif(
    any(Path("/dev").glob("accel[0-9]*")), reason="this machine has an accelerator of its own"
)
@pytest.mark.parametrize(
    ("driver", "extra"),
    [
        ("CUDA Version: 11.8", "[cuda12]"),
        ("CUDA Version: 12.8", "[cuda12]"),
        ("CUDA Version: N/A", "[cuda12]"),
        ("CUDA Version: 13.0", "[gpu]"),
        ("CUDA UMD Version: 14.1", "[gpu]"),
        (None, ""),
    ],
)
def test_the_extra_is_that_of_the_machine(driver, extra, tmp_path, bare):
    if driver:
        script(tmp_path / "bin" / "nvidia-smi", f"#!/bin/sh\necho '| {driver}  |'\n")
    assert launch("worker.sh", "--version", env=bare, cwd=tmp_path).returncode == 0
    assert asked(tmp_path) == [f"-m pip install --quiet -c {ROOT}/constraints.txt -e {ROOT}{extra}"]


def test_the_extras_are_those_of_the_package():
    named = set(re.findall(r"echo ([a-z]\w+)", WORKER.read_text()))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert named == {"tpu", "gpu", "cuda12"} <= project["optional-dependencies"].keys()
