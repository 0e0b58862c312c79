"""What launch/ gives to GKE, by the schemas of JobSet and Kubernetes, and to SkyPilot, by its own parser."""

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch_machines import LAUNCH, script

# The programs that can build a kustomization.
KUSTOMIZE = next(
    (words for words in (["kustomize", "build"], ["kubectl", "kustomize"]) if shutil.which(words[0])), None
)


def built() -> dict[str, Any]:
    """The JobSet as kubectl apply -k sends it."""
    if KUSTOMIZE is None:
        pytest.skip("needs kustomize or kubectl")
    made = subprocess.run([*KUSTOMIZE, LAUNCH], check=True, capture_output=True, text=True).stdout
    return yaml.safe_load(made)


def written() -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / "gke.yaml").read_text(encoding="utf-8"))


def at(manifest: Any, path: str) -> Any:
    """What stands at a path such as "spec/replicatedJobs/0"."""
    for name in path.split("/"):
        manifest = manifest[int(name) if name.isdigit() else name]
    return manifest


JOB = "spec/replicatedJobs/0/template/spec"
POD = f"{JOB}/template/spec"


# ---- Schemas ----


def closed(schema: Any) -> Any:
    """A schema of a CRD that refuses fields which it doesn't know, as the server does when it is told to."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(part) for key, part in schema.items()}
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("type", None)
        schema["type"] = ["integer", "string"]
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


@pytest.fixture(scope="module")
def jobset_schema(shared: Path) -> dict[str, Any]:
    crd = yaml.safe_load((shared / "kubernetes" / "jobset_crd.yaml").read_text(encoding="utf-8"))
    [version] = [version for version in crd["spec"]["versions"] if version["name"] == "v1alpha2"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def faults(manifest: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    """The paths of what JobSet's schema refuses, and the reasons for which Kubernetes refuses its Jobs."""
    jsonschema = pytest.importorskip("jsonschema")
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest):
        yield f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
    for replicated in at(manifest, "spec/replicatedJobs"):
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": replicated["name"]}}
        try:
            kubernetes_validate.validate(job | {"spec": at(replicated, "template/spec")}, "1.37", strict=True)
        except (kubernetes_validate.ValidationError, jsonschema.ValidationError) as error:
            yield f"Job: {error}"


@pytest.mark.parametrize("manifest", [written, built])
def test_the_jobset_is_valid(manifest, jobset_schema):
    assert not [*faults(manifest(), jobset_schema)]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/failurePolicy/maxRestarts", "100"),
        ("spec/failurePolicy/rules/0/action", "FailJobset"),
        ("spec/failurePolicy/rules/0/onJobFailureReason", ["PodFailurePolicy"]),
        ("spec/replicatedJobs/0/replica", 2),
        (f"{JOB}/podFailurePolicy/rules/0/onExitCodes/values", ["1"]),
        (f"{JOB}/backoffLimits", 0),
        (f"{POD}/containers/0/arguments", ["train"]),
        (f"{POD}/containers/0/args", "train"),
        (f"{POD}/terminationGracePeriod", 120),
        (f"{POD}/volumes/0/csi/bucketName", "b"),
    ],
)
def test_a_mistake_would_be_found(path, value, jobset_schema):
    manifest = written()
    folder, _, name = path.rpartition("/")
    at(manifest, folder)[name] = value
    assert [*faults(manifest, jobset_schema)]


# ---- What it says ----


def test_only_1_and_2_end_the_run():
    """Rules of the Job make 1 and 2 a PodFailurePolicy, which ends the JobSet; all others restart it."""
    jobset = written()
    [rule] = at(jobset, f"{JOB}/podFailurePolicy/rules")
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [1, 2]
    assert rule["onExitCodes"]["containerName"] == at(jobset, f"{POD}/containers/0/name")
    [ending] = at(jobset, "spec/failurePolicy/rules")
    assert (ending["action"], ending["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert at(jobset, f"{JOB}/backoffLimit") == 0 and at(jobset, f"{POD}/restartPolicy") == "Never"


def test_the_command_is_process_1_of_its_container():
    """The image starts worker.sh without a shell, and worker.sh becomes the command."""
    dockerfile = (LAUNCH / "Dockerfile").read_text(encoding="utf-8")
    [entry] = re.findall(r"^ENTRYPOINT (.*)$", dockerfile, re.M)
    assert json.loads(entry) == ["/rationalyst/launch/worker.sh"]
    assert "command" not in at(written(), f"{POD}/containers/0")


def test_kustomize_changes_what_is_the_runs_own_and_nothing_else():
    base = written()
    own = built()
    restored = copy.deepcopy(own)
    for path in (
        "metadata/name",
        f"{POD}/nodeSelector",
        f"{POD}/containers/0/image",
        f"{POD}/containers/0/args",
    ):
        assert at(own, path) != at(base, path)
        folder, _, name = path.rpartition("/")
        at(restored, folder)[name] = at(base, path)
    assert restored == base


# ---- SkyPilot ----

# The commands that sky.yaml's header gives for two machines, and what each asks of the second one.
COMMANDS = [
    (
        "train ... $JOIN",
        "train ... --distributed.coordinator 10.0.0.1:8476 --distributed.processes 2 --distributed.process 1",
    ),
    ("mine ... --shard $SKYPILOT_NODE_RANK/$SKYPILOT_NUM_NODES", "mine ... --shard 1/2"),
    ("train --prompts 'a b'", "train --prompts a b"),
]


@pytest.mark.parametrize(("command", "started"), COMMANDS)
def test_each_machine_of_skypilot_reads_the_command(command, started, tmp_path):
    text = (LAUNCH / "sky.yaml").read_text(encoding="utf-8")
    if "$" in command:
        assert f" {command.partition(' ')[2]}'\n" in text
    script(tmp_path / "launch" / "worker.sh", '#!/bin/sh\necho "$*"\n')
    env = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    ran = subprocess.run(
        ["bash", "-c", yaml.safe_load(text)["run"]],
        env=os.environ | env | {"COMMAND": command},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (ran.stdout, ran.stderr) == (f"{started}\n", "")


PARSE = """
import sys, sky
task = sky.Task.from_yaml(sys.argv[1])
[resources] = task.resources
print(resources.job_recovery["recover_on_exit_codes"], resources.use_spot, task.num_nodes, *task.envs)
"""


@pytest.mark.slow  # imports much
def test_skypilot_reads_its_file(tmp_path):
    sky = shutil.which("sky")
    if sky is None:
        pytest.skip("needs SkyPilot on the path, in an environment of its own")
    python = Path(sky).read_text(encoding="utf-8").splitlines()[0].removeprefix("#!")

    def read(text: str) -> subprocess.CompletedProcess:
        (tmp_path / "sky.yaml").write_text(text, encoding="utf-8")
        command = [python, "-c", PARSE, tmp_path / "sky.yaml"]
        return subprocess.run(command, cwd=LAUNCH.parent, capture_output=True, text=True)

    text = (LAUNCH / "sky.yaml").read_text(encoding="utf-8")
    good = read(text)
    assert good.returncode == 0, good.stderr
    assert good.stdout == "[75, 134, 137, 143] True 1 COMMAND\n"
    for right, wrong in (("use_spot", "use_spots"), ("[75,", "[seventy,"), ("num_nodes", "nodes")):
        assert read(text.replace(right, wrong)).returncode != 0
