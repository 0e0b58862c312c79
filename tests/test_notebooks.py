"""The notebooks are built from their sources, and a real kernel runs them to their end."""

import re
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

from rationalyst_jax.lm.weights.open import open_checkpoint

jupytext = pytest.importorskip("jupytext", reason="pip install jupytext, which builds the notebooks")
nbformat = pytest.importorskip("nbformat", reason="pip install jupytext, which brings nbformat")
nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel, which run notebooks")
pytest.importorskip("ipykernel", reason="pip install ipykernel, which runs notebooks")

ROOT = Path(__file__).parents[1]
BUILD = run_path(str(ROOT / "notebooks" / "build.py"))
SOURCES = BUILD["SOURCES"]


def test_there_are_notebooks():
    assert [source.stem for source in SOURCES] == ["demo", "llama_1b"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_notebook_is_what_its_source_builds(source: Path):
    built = BUILD["built"](source)
    assert source.with_suffix(".ipynb").read_text(encoding="utf-8") == built, "run: make notebooks"
    notebook = nbformat.reads(built, as_version=4)
    nbformat.validate(notebook)
    assert {"kernelspec", "colab", "kaggle"} <= set(notebook.metadata)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def run(source: Path, folder: Path) -> Any:
    """The notebook with its outputs, run in a folder by a kernel of this Python. Raises where a cell does."""
    notebook = nbformat.reads(BUILD["built"](source), as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    return client.execute()


def texts(notebook: Any) -> str:
    """All that its cells show as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "\n".join(
        output.text if output.output_type == "stream" else output.data.get("text/plain", "")
        for output in outputs
    )


def test_the_demo_ends_with_the_page_of_its_run(tmp_path: Path, browser: Any):
    done = run(ROOT / "notebooks" / "demo.py", tmp_path)
    said = texts(done)
    assert re.search(r"\d+ of \d+ kept", said) and re.search(r"implicit +[\d.]+ \[", said)
    [shown] = [output for output in done.cells[-1].outputs if output.output_type == "execute_result"]
    page = browser.new_page()
    page.route("**", lambda route: route.fulfill(body=shown.data["text/html"], content_type="text/html"))
    page.goto("http://notebook.test/")
    frame = page.frame_locator("iframe")
    frame.locator("body[data-ready]").wait_for()
    frame.get_by_role("link", name="Questions").click()
    frame.locator(".row").first.click()
    frame.locator("article ol.steps").first.wait_for()


def test_the_notebook_for_llama_goes_the_whole_way_with_the_small_model(tmp_path: Path):
    done = run(ROOT / "notebooks" / "llama_1b.py", tmp_path)
    said = texts(done)
    assert re.search(r"\d+ of \d+ kept", said) and re.search(r"implicit +[\d.]+ \[", said)
    merged = tmp_path / "rationalyst-llama-small" / "train" / "hf"
    assert open_checkpoint(merged).tokenizer is not None
    assert (tmp_path / "rationalyst-llama-small" / "rationalyst.zip").is_file()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
@pytest.mark.parametrize(("machine", "extra"), [("tpu", "[tpu]"), ("gpu", "[cuda12]"), ("cpu", "")])
@pytest.mark.parametrize("changed", [True, False])
def test_a_notebook_installs_what_its_machine_needs(
    source: Path, machine: str, extra: str, changed: bool, monkeypatch: pytest.MonkeyPatch
):
    cell = next(c for c in jupytext.read(source).cells if "PACKAGE" in c.source)
    done = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{changed and len(done)}")
    monkeypatch.setattr("shutil.which", lambda name: name if machine == "gpu" else None)
    monkeypatch.setattr(Path, "exists", lambda path: machine == "tpu" and str(path) == "/dev/accel0")
    monkeypatch.setattr("subprocess.run", lambda command, check: done.append(command[-1]))
    monkeypatch.setattr("os.kill", lambda process, signal: done.append(signal))
    exec(cell.source, {})
    assert done == [f"rationalyst_jax{extra}", *([9] if changed else [])]
