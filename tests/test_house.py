"""The rules every file of the project keeps."""

import ast
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rationalyst_jax"
# Lowest first.
LAYERS: Sequence[str] = (
    *("files", "lm", "prompts", "roles", "tasks", "world"),
    *("mine", "train", "reason", "evaluate"),
    *("plan", "serve", "report", "pipeline", "cli"),
)
DRAWERS: Sequence[str] = ("devices", "cpu", "attention", "model", "trees", "weights", "engine")  # of lm
SIBLINGS = {"mine", "train", "reason", "evaluate"}  # these meet in files and in pipeline only


def imported_names(path: Path) -> Iterator[str]:
    """Absolute dotted names a file imports, those inside functions included."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def may_import(importer: Sequence[str], imported: Sequence[str]) -> bool:
    """Whether the module of one dotted name (without the package's) may import what another names."""
    for order, place in ((LAYERS, 0), (DRAWERS, 1)):
        above = importer[place]
        below = imported[place]
        if above not in order or below not in order:
            return False
        if above != below:
            return order.index(below) < order.index(above) and not {above, below} <= SIBLINGS
        if above != "lm":
            return True
    return True


def project_files() -> list[Path]:
    """Every text file that is, or is about to be, in the repository: all that .gitignore does not name.

    An empty repository beside it is asked, so that an unpacked archive will do as well as a checkout.
    """
    with tempfile.TemporaryDirectory() as empty:
        git = ["git", f"--git-dir={empty}", f"--work-tree={ROOT}"]
        subprocess.run([*git, "init", "--quiet"], check=True)
        listing = subprocess.run(
            [*git, "ls-files", "-z", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
    files = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    return [file for file in files if file.is_file() and b"\0" not in file.read_bytes()]


def test_imports_go_only_downward():
    upward = []
    for path in PACKAGE.rglob("*.py"):
        importer = path.relative_to(PACKAGE).with_suffix("").parts
        for name in imported_names(path):
            package, *imported = name.split(".")
            if package == PACKAGE.name and imported and not may_import(importer, imported):
                upward.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not upward, "\n".join(upward)


def test_every_package_and_drawer_says_what_it_is():
    for folder in (PACKAGE, *(PACKAGE / layer for layer in LAYERS), *(PACKAGE / "lm" / d for d in DRAWERS)):
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), folder.name


def test_the_page_on_the_architecture_draws_the_same_house():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.M) == [*reversed(LAYERS), *reversed(DRAWERS)]


def test_no_module_of_the_package_needs_torch():
    # transformers takes torch where it finds it, so the finder is made blind: a machine without torch.
    program = """
import importlib, pkgutil
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *where: None if name.split(".")[0] == "torch" else find(name, *where)
import rationalyst_jax
for module in pkgutil.walk_packages(rationalyst_jax.__path__, "rationalyst_jax."):
    if module.name != "rationalyst_jax.lm.attention.triton":  # needs the gpu extra
        importlib.import_module(module.name)
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_no_module_of_the_package_imports_torch():
    assert not [
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == "torch" for name in imported_names(path))
    ]


def test_no_file_holds_a_machine_path_or_a_registry_host():
    machine_path = re.compile(r"(?<![\w.~-])/(?:work|tmp|root|home|Users)/")
    registry = re.compile(
        r"py[p]i\.|pythonhoste[d]\.|download\.pytorc[h]\.|index-ur[l]|artifactor[y]", re.IGNORECASE
    )
    found = []
    for path in project_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if machine_path.search(line) or registry.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_constraints_pin_versions_and_name_no_host():
    pin = re.compile(r"[a-z0-9-]+==[\w.]+(; python_version [<>=]+ \"3\.\d+\")?")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if line and not line.startswith("#") and not pin.fullmatch(line)]


def test_every_dependency_is_bounded_and_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    assert not [requirement for requirement in asked if not re.search(r">=.+,<", requirement)]
    pinned = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    names = {re.split(r"[\[<>=]", requirement)[0].replace("_", "-") for requirement in asked}
    assert names <= pinned


def test_a_public_class_has_a_name_of_its_own():
    places: dict[str, list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: found for name, found in places.items() if len(found) > 1}
