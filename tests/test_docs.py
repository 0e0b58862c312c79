"""README and the pages of docs/ say what is so: commands that parse, messages that come, links that lead."""

import ast
import contextlib
import importlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_files import rationalyst

from rationalyst_jax.cli.main import COMMANDS, parser_of

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for folder in (ROOT, ROOT / "docs", ROOT / "launch") for page in folder.glob("*.md"))
SITE = ROOT / "build" / "docs"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.M)
INDENTED = re.compile(r"(?:^    .*\n|^\n(?=    ))+", re.M)
PARSERS = {
    name: parser_of(name, importlib.import_module(f"rationalyst_jax.cli.{name.replace(' ', '_')}"))
    for name in COMMANDS
}


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language ("" where none is named) and text of each code block."""
    text = page.read_text(encoding="utf-8")
    for language, block in FENCE.findall(text):
        yield language, block
    for block in INDENTED.findall(FENCE.sub("", text)):
        yield "", re.sub(r"^    ", "", block, flags=re.M)


def commands(page: Path) -> list[str]:
    """Every command line of ours in a code block, and in a text where options are given."""
    lines = []
    for language, block in blocks(page):
        if language not in ("console", "json", "python", "text", "yaml"):
            lines += block.replace("\\\n", " ").splitlines()
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    lines += [" ".join(code.split()) for code in re.findall(r"`(rationalyst [^`]*--[^`]*)`", prose)]
    # What may stand before a command: a prompt, the folder of an environment, a variable, a launcher.
    launched = r"launch/worker\.sh|launch/tpu\.sh run .* --|sbatch .*launch/slurm\.sbatch"
    before = rf"\s*(?:\$ )?(?:[A-Z_]+=\S+ )?(?:(?:\S*bin/)?rationalyst|{launched}) (?=[a-z])"
    return [line[match.end() :] for line in lines if (match := re.match(before, line))]


def arguments(line: str) -> str:
    """A command line without what only people read: comments, what follows it, "…" and optional options."""
    line = re.sub(r"\s+#.*| \|\|.*| &&.*", "", line)
    return re.sub(r"[\[\]](?= |$)|(?<= )\[(?=--)", "", line.replace("...", "").replace("…", ""))


COMMAND_LINES = [
    pytest.param(page, line, id=f"{page.name}: {line[:60]}") for page in PAGES for line in commands(page)
]


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES)
def test_a_command_line_of_the_docs_parses(page, line, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rationalyst_jax.cli.main.parser_of", lambda name, command: PARSERS[name])
    for language, block in blocks(page):  # a file that a page shows begins with its name
        if language == "yaml" and (named := re.match(r"# (\S+\.yaml)\n", block)):
            Path(named[1]).write_text(block, encoding="utf-8")
    assert rationalyst(f"{arguments(line)} --print_config") == 0, capsys.readouterr().err


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "http://")):
            file, _, anchor = target.partition("#")
            there = page.parent / file if file else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^([a-z-]+)$", "".join(re.findall(r"```{toctree}\n(?:.*\n)*?```", index)), re.M)
    assert sorted(listed) == [
        page.stem for page in PAGES if page.parent.name == "docs" and page.stem != "index"
    ]


def test_the_python_of_the_api_page_runs(capsys):
    [block] = [text for language, text in blocks(ROOT / "docs" / "api.md") if language == "python"]
    exec(compile(block, "api.md", "exec"), {})
    assert len(ast.literal_eval(capsys.readouterr().out)) == 2  # candidates


def faults() -> Iterator[tuple[str, str]]:
    """The commands of the page on error messages, each with what it says."""
    for language, block in blocks(ROOT / "docs" / "faq.md"):
        if language == "console":
            command, *said = block.replace("\\\n", " ").strip().splitlines()
            yield command.removeprefix("$ rationalyst "), " ".join(line.strip() for line in said)


@pytest.mark.parametrize(("command", "said"), [*faults()])
def test_an_error_message_of_the_docs_is_what_is_said(command, said, files: Path, monkeypatch):
    monkeypatch.chdir(files)
    before = {*files.iterdir()}
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        assert rationalyst(command) in (1, 2)
    for new in {*files.iterdir()} - before:
        shutil.rmtree(new) if new.is_dir() else new.unlink()
    heard = errors.getvalue().strip()
    begins, cut, _ = said.partition("…")  # what is long is cut off in the docs
    assert heard.startswith(begins) if cut else heard == said, heard


def first_hour() -> list[str]:
    """The shell blocks of the first hour that come after the installation."""
    return [block for language, block in blocks(ROOT / "docs" / "first-hour.md") if language == "shell"]


def in_a_shell(script: str, folder: Path) -> str:
    """Runs a script with this package as the command `rationalyst`; returns what it printed."""
    command = (
        f'python3() {{ "{sys.executable}" "$@"; }}\n'
        f'rationalyst() {{ PYTHONPATH="{ROOT}" python3 -m rationalyst_jax.cli.main "$@"; }}\n'
    )
    run = subprocess.run(
        ["bash", "-e", "-c", command + script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_twenty_documents_of_the_first_hour_are_there(tmp_path: Path):
    from rationalyst_jax.mine.documents import read_documents

    in_a_shell(first_hour()[0], tmp_path)
    assert len({document.id for document in read_documents(tmp_path / "documents.jsonl")}) == 20


@pytest.mark.slow
def test_the_first_hour_works_from_an_empty_folder(tmp_path: Path):
    printed = in_a_shell("\n".join(first_hour()), tmp_path)
    assert (tmp_path / "trained" / "hf" / "model.safetensors").is_file()
    assert "accuracy − that of likelihood.jsonl" in printed


@pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="make docs has not been run")
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path")
def test_the_site_opens_from_disk_and_asks_for_nothing_elsewhere():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    asked: list[str] = []
    errors: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        for name in ("index", "first-hour", "api"):
            page.goto((SITE / f"{name}.html").as_uri())
            assert page.locator("h1").count() == 1
        page.goto((SITE / "search.html").as_uri() + "?q=rationale")
        page.locator("ul.search a").first.wait_for(timeout=20_000)
        browser.close()
    assert not errors
    assert not [url for url in asked if not url.startswith((SITE.as_uri(), "data:"))]
