"""What strangers meet first is whole: one version, a changelog, a citation, forms, workflows, a wheel."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml
from packaging.version import Version

from rationalyst_jax.cli.main import CONFIGS, main

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rationalyst_jax"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION: str = PROJECT["version"]
WORKFLOWS = ROOT / ".github" / "workflows"
FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"
SCHEMAS = {
    "vendor.github-workflows": sorted(WORKFLOWS.glob("*.yml")),
    "vendor.github-issue-forms": sorted(set(FORMS.glob("*.yml")) - {FORMS / "config.yml"}),
    "vendor.github-issue-config": [FORMS / "config.yml"],
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}


def read_yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs() -> dict[str, dict[str, Any]]:
    """The jobs of all workflows, but for those that are another workflow."""
    found = {
        f"{path.name}: {name}": job
        for path in WORKFLOWS.glob("*.yml")
        for name, job in read_yaml(path)["jobs"].items()
    }
    return {name: job for name, job in found.items() if "steps" in job}


def commands() -> str:
    """What workflows run in shells."""
    return "\n".join(step.get("run", "") for job in jobs().values() for step in job["steps"])


def test_the_command_knows_the_installed_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rationalyst_jax {installed_version('rationalyst_jax')}\n"


def test_without_an_installed_package_no_version_is_made_up(capsys, monkeypatch):
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("rationalyst_jax.cli.main.version", absent)
    assert main(["--version"]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "rationalyst: no version is known, the package is not installed\n")


def test_only_pyproject_says_the_version():
    said = re.compile(rf"""["']{re.escape(VERSION)}["']|__version__ *=""")
    assert not [str(path) for path in PACKAGE.rglob("*.py") if said.search(path.read_text(encoding="utf-8"))]


def test_pages_name_no_wheel_of_another_version():
    name = re.compile(r"rationalyst_jax-(\d[\w.]*)(?:-py3|\.tar)")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {found for page in pages for found in name.findall(page.read_text(encoding="utf-8"))}
    assert named <= {VERSION}


def test_the_changelog_has_a_section_of_every_version_newest_first():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (.+)$", text, re.M)
    if heads[0] == "Unreleased":
        del heads[0]
    sections = [re.fullmatch(r"(\d+\.\d+\.\d+) \((?:\d{4}-\d\d-\d\d|not released)\)", head) for head in heads]
    versions = [Version(section[1]) for section in sections if section]
    assert len(versions) == len(heads)
    assert versions == sorted(set(versions), reverse=True)
    assert Version(VERSION) in versions


def test_the_citation_is_of_this_version_and_licence():
    citation = read_yaml(ROOT / "CITATION.cff")
    assert citation["version"] == VERSION
    assert citation["license"] == PROJECT["license"]
    [paper] = citation["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_forms_workflows_and_citation_are_valid(schema):
    if find_spec("check_jsonschema") is None:
        pytest.skip("pip install check-jsonschema, for the schemas of workflows, forms and citations")
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *SCHEMAS[schema]]
    run = subprocess.run(check, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_workflows_may_do_no_more_than_they_must():
    for path in WORKFLOWS.glob("*.yml"):
        assert read_yaml(path)["permissions"] == {"contents": "read"}, path.name
    extra = {name: job["permissions"] for name, job in jobs().items() if "permissions" in job}
    assert extra == {"release.yml: publish": {"id-token": "write"}}
    [publish] = [job for name, job in jobs().items() if name == "release.yml: publish"]
    assert not [
        step for step in publish["steps"] if "run" in step
    ]  # whoever may publish runs no code of ours
    assert all("timeout-minutes" in job for job in jobs().values())


def test_every_action_is_pinned_by_its_major_version():
    used = [step["uses"] for job in jobs().values() for step in job["steps"] if "uses" in step]
    assert used
    assert not [name for name in used if not re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", name)]


def test_ci_runs_every_python_version_that_the_package_names():
    classifiers = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if "Python :: 3." in name}
    ci = read_yaml(WORKFLOWS / "ci.yml")["jobs"]
    given = [step.get("with", {}) for step in ci["everything"]["steps"]]
    [lowest] = [inputs["python-version"] for inputs in given if "python-version" in inputs]
    assert PROJECT["requires-python"].startswith(f">={lowest}.")
    assert {lowest, *ci["newest"]["strategy"]["matrix"]["python"]} == classifiers


def test_workflows_run_what_there_is():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^\s*make ([\w-]+)", commands(), re.M)
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    assert all((CONFIGS / f"{name}.yaml").is_file() for name in re.findall(r"--config (\S+)", commands()))
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize(
    ("tag", "head", "goes_on"),
    [
        ("v1.2.3", "1.2.3 (2030-01-31)", True),
        ("v1.2.4", "1.2.3 (2030-01-31)", False),
        ("1.2.3", "1.2.3 (2030-01-31)", False),
        ("v1.2.3", "Unreleased", False),
        ("v1.2.3", "1.2.3 (not released)", False),
        ("v1.2.3", "1x2.3 (2030-01-31)", False),
    ],
)
def test_a_tag_is_released_only_if_version_and_changelog_say_the_same(tmp_path, tag, head, goes_on):
    [check] = [step["run"] for step in jobs()["release.yml: build"]["steps"] if "tag" in step.get("name", "")]
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n', encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text(
        f"# Changelog\n\n## {head}\n\n- x\n\n## 1.2.3 (2030-01-31)\n", encoding="utf-8"
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"GITHUB_REF_NAME": tag, "PATH": path}
    run = subprocess.run(["bash", "-e", "-c", check], cwd=tmp_path, env=environment, capture_output=True)
    assert (run.returncode == 0) == goes_on


def test_the_wheel_holds_every_file_of_the_package(tmp_path, monkeypatch):
    backend = pytest.importorskip("hatchling.build", reason="pip install hatchling, to build a wheel offline")
    monkeypatch.chdir(ROOT)
    with ZipFile(tmp_path / backend.build_wheel(str(tmp_path))) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        [metadata] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        described = wheel.read(metadata).decode()
    here = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.is_file()}
    assert held == {name for name in here if "__pycache__" not in name}
    assert {"rationalyst_jax/report/page/page.js", "rationalyst_jax/configs/demo.yaml"} <= held
    assert f"\nVersion: {VERSION}\n" in described
