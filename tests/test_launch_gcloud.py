"""launch/tpu.sh with the real gcloud, whose requests are answered here: what the TPU API is asked."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from launch_machines import environment, launch, script

pytestmark = pytest.mark.slow  # gcloud takes seconds to start

# A machine is a folder named after its address. Its status comes from a file there (launch_machines.py).
SSH = r"""#!/usr/bin/env bash
while [ $# -gt 0 ] && [ "$1" != -- ]; do host=${1#*@}; shift; done
[ $# -gt 1 ] || exit 0 # gcloud tries whether the machine answers
shift
mkdir -p "$MACHINES/$host" && cd "$MACHINES/$host" && STATUSES=statuses exec bash -c "$*"
"""
SCP = r"""#!/usr/bin/env bash
from=${*: -2:1} to=${*: -1}
to=${to#*@}
mkdir -p "$MACHINES/${to%%:*}" && cp "$from" "$MACHINES/${to%%:*}/${to#*:}"
"""


class TpuApi(ThreadingHTTPServer):
    """What tpu.googleapis.com says of queued resources and their nodes.

    requests: method, path and body of each. states: of the queued resource, one a look; the last one stays.
    workers: machines of a node. hidden: names of nodes, each not found when it is looked for once.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.requests: list[tuple[str, str, Any]] = []
        self.made: dict[str, Any] = {}
        self.states = ["ACTIVE"]
        self.workers = 1
        self.hidden: list[str] = []

    @property
    def created(self) -> list[Any]:
        return [
            body for method, path, body in self.requests if method == "POST" and "queuedResources" in path
        ]

    @property
    def changes(self) -> list[str]:
        return [method for method, path, _ in self.requests if "queuedResources" in path and method != "GET"]


class Answers(BaseHTTPRequestHandler):
    server: TpuApi

    def answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else None
        self.server.requests.append((self.command, self.path, body))
        found = self.found(body)
        data = json.dumps(
            found or {"error": {"code": 404, "message": "none", "status": "NOT_FOUND"}}
        ).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def found(self, body: Any) -> dict[str, Any] | None:
        """What is answered, None: that it is not there."""
        path, _, query = self.path.partition("?")
        name = path.split("/")[-1]
        result = {"name": "projects/p/locations/z/nodes/t"}
        operation = {"name": "projects/p/locations/z/operations/1", "done": True, "response": result}
        if self.command == "POST" and name == "queuedResources":
            name = query.split("queuedResourceId=")[1].split("&")[0]
            [spec] = body["tpu"]["nodeSpec"]
            slices = spec.get("multisliceParams", {}).get("nodeCount", 0)  # named NAME-0, NAME-1, ...
            specs = [{**spec, "nodeId": f"{name}-{i}"} for i in range(slices)] or [spec]
            self.server.made[name] = {**body, "tpu": {"nodeSpec": specs}}
        elif "/queuedResources/" in path:
            if name not in self.server.made:
                return None
            if self.command == "DELETE":
                del self.server.made[name]
                return operation
            state = self.server.states.pop(0) if len(self.server.states) > 1 else self.server.states[0]
            return {"name": path.removeprefix("/v2/"), "state": {"state": state}, **self.server.made[name]}
        elif self.command == "GET" and "/nodes/" in path:
            if name in self.server.hidden:
                self.server.hidden.remove(name)
                return None
            node = int(name.rpartition("-")[2]) if name[-1].isdigit() else 0
            addresses = [f"127.0.{node}.{2 + worker}" for worker in range(self.server.workers)]
            ends = [{"ipAddress": at, "accessConfig": {"externalIp": at}} for at in addresses]
            return {"name": path.removeprefix("/v2/"), "state": "READY", "networkEndpoints": ends}
        return operation

    do_GET = do_POST = do_DELETE = do_PATCH = answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Project:
    """A project of Google Cloud whose API answers here."""

    def __init__(self, folder: Path, api: TpuApi):
        self.folder = folder
        self.api = api
        at = f"http://127.0.0.1:{api.server_port}"
        keys = folder / "home" / ".ssh"
        keys.mkdir(parents=True)
        (keys / "google_compute_engine").write_text("none")
        (keys / "google_compute_engine.pub").write_text("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7 a@b\n")
        (folder / "token").write_text("none")
        for name, text in (("ssh", SSH), ("scp", SCP), ("ssh-keygen", "#!/bin/sh\n")):
            script(folder / "bin" / name, text)
        self.env = environment(folder) | {
            "HOME": str(folder / "home"),
            "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]),
            "POLL": "0",
            "MACHINES": str(folder / "machines"),
            "CLOUDSDK_CONFIG": str(folder / "gcloud"),
            "CLOUDSDK_CORE_PROJECT": "p",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
            "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
            "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
            "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(folder / "token"),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": f"{at}/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{at}/compute/v1/",
        }

    def machine(self, address: str, *statuses: int) -> None:
        """A machine on which the command ends with these statuses, then 0."""
        folder = self.folder / "machines" / address
        folder.mkdir(parents=True)
        (folder / "statuses").write_text("".join(f"{status}\n" for status in statuses))

    def tpu(self, line: str) -> subprocess.CompletedProcess:
        return launch("tpu.sh", *line.split(), env=self.env, cwd=self.folder)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    if shutil.which("gcloud") is None:
        pytest.skip("needs gcloud, the Google Cloud CLI")
    with TpuApi() as api:
        threading.Thread(target=api.serve_forever).start()
        yield Project(tmp_path, api)
        api.shutdown()


def node(accelerator: str, runtime: str) -> dict[str, Any]:
    own = {"acceleratorType": accelerator, "runtimeVersion": runtime}
    given = {"metadata": {}, "serviceAccount": {}}  # by gcloud, as the next line
    return own | given | {"networkConfig": {"enableExternalIps": True, "network": "default"}}


@pytest.mark.parametrize(
    ("options", "spec", "rest"),
    [
        (
            "--accelerator-type=v5litepod-8",
            {"nodeId": "t", "node": node("v5litepod-8", "v2-alpha-tpuv5-lite")},
            {},
        ),
        (
            "--accelerator-type=v6e-16 --spot",
            {"nodeId": "t", "node": node("v6e-16", "v2-alpha-tpuv6e")},
            {"spot": {}},
        ),
        (
            "--accelerator-type=v5p-32 --node-count=2 --spot",
            {
                "multisliceParams": {"nodeCount": 2, "nodeIdPrefix": "t"},
                "node": node("v5p-32", "v2-alpha-tpuv5"),
            },
            {"spot": {}},
        ),
    ],
    ids=["one machine", "a slice", "two slices"],
)
def test_what_is_queued(project, options, spec, rest):
    ran = project.tpu(f"queue t --zone=z {options}")
    assert ran.returncode == 0, ran.stderr
    [body] = project.api.created
    [made] = body.pop("tpu")["nodeSpec"]
    assert made.pop("parent") == "projects/p/locations/z"
    assert (made, body) == (spec, rest)


def test_two_machines_that_stopped_start_again_and_the_tpus_are_deleted(project):
    project.api.workers = 2
    project.machine("127.0.0.2", 75)
    project.machine("127.0.0.3", 75)
    ran = project.tpu("run t --zone=z --accelerator-type=v6e-16 -- train --prompts world")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("rationalyst train --prompts world\n") == 4
    assert "ended with 75, starts again" in ran.stderr
    assert project.api.changes == ["POST", "DELETE"]


def test_tpus_that_were_taken_away_are_queued_again(project):
    project.machine("127.0.0.2", 143)
    project.api.states = ["PROVISIONING", *["ACTIVE"] * 3, "SUSPENDED", "ACTIVE"]
    ran = project.tpu("run t --zone=z --accelerator-type=v6e-8 --spot -- train")
    assert ran.returncode == 0, ran.stderr
    assert project.api.changes == ["POST", "DELETE", "POST", "DELETE"]
    first, second = project.api.created
    assert first == second


def test_an_error_on_one_machine_of_two_slices_stops_all_and_the_tpus_stay(project):
    project.machine("127.0.0.2", 134)
    project.machine("127.0.1.2", 1)
    ran = project.tpu("run t --zone=z --accelerator-type=v6e-8 --node-count=2 -- train")
    assert ran.returncode == 1
    assert ran.stderr.endswith("tpu.sh: ended with 1; t is kept: tpu.sh stop t deletes it\n")
    assert ran.stdout.count("rationalyst train\n") == 2
    assert project.api.changes == ["POST"]


def test_a_slice_that_gcloud_leaves_out_is_started_before_the_tpus_are_deleted(project):
    project.api.hidden = ["t-1"]
    ran = project.tpu("run t --zone=z --accelerator-type=v6e-8 --node-count=2 -- train")
    assert ran.returncode == 0, ran.stderr
    assert "Could not prepare all 2 nodes" in ran.stdout
    assert "tpu.sh: ended with 255, starts again" in ran.stderr
    assert ran.stdout.count("rationalyst train\n") == 2
    assert project.api.changes == ["POST", "DELETE"]


@pytest.mark.parametrize("wrong", ["--accelerator-types=v6e-8", "--accelerator-type=v6e-8 --preemptible"])
def test_wrong_options_never_pass(project, wrong):
    ran = project.tpu(f"run t --zone=z {wrong} -- train")
    assert ran.returncode == 2 and "(gcloud.compute.tpus.queued-resources.create)" in ran.stderr
    assert not project.api.changes
