"""The check for a machine with a GPU, as far as it runs without one."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks/accelerator.py"
# What the bare machine lacks, or may lack.
ABSENT = (
    *("array_record", "grain", "jsonargparse", "matplotlib", "openai", "pyarrow", "rapidfuzz"),
    *("starlette", "tensorboardX", "uvicorn"),
)


@pytest.fixture(scope="module")
def accelerator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accelerator", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TREES = "test_attention_over_trees_and_its_gradients"


def found(outcomes: dict[str, str], state: str = "done", **milliseconds: float) -> dict:
    """Both parts that count; each implementation has passed a test, beside `outcomes`."""
    outcomes = {f"{TREES}[{by}-bfloat16-8-8-128]": "passed" for by in milliseconds} | outcomes
    rows = [
        {"what": "", "input": "trees", "direction": direction, "heads": heads, "by": by, "milliseconds": time}
        for by, time in milliseconds.items()
        for heads in (64, 128)
        for direction in ("forward", "forward + backward")
    ]
    return {"numerics": {"state": state, "outcomes": outcomes, "rows": []}, "kernels": {"rows": rows}}


def test_the_choice_is_what_passed_its_tests_the_fastest_first(accelerator):
    failed = {f"{TREES}[cudnn-float16-4-2-64]": "failed"}
    assert '= ("triton", "xla")' in accelerator.justified(found(failed, cudnn=1, triton=2, xla=9))
    assert '= ("cudnn", "triton", "xla")' in accelerator.justified(found({}, xla=9, triton=2, cudnn=1))
    assert '= ("xla",)' in accelerator.justified(found({}, xla=1, triton=2))
    failed = {"test_blocks_passed_over_are_not_even_read[triton]": "failed"}
    assert '= ("xla",)' in accelerator.justified(found(failed, triton=2, xla=9))
    assert "nothing is justified" in accelerator.justified({})


def test_what_was_not_tested_is_not_chosen(accelerator):
    skipped = {f"{TREES}[cudnn-float16-4-2-64]": "skipped"}
    assert '= ("triton", "xla")' in accelerator.justified(found(skipped, cudnn=1, triton=2, xla=9))
    untested = found({}, cudnn=1, triton=2, xla=9)
    del untested["numerics"]["outcomes"][f"{TREES}[cudnn-bfloat16-8-8-128]"]
    assert '= ("triton", "xla")' in accelerator.justified(untested)
    for state in ("stopped at its limit", "failed (2)"):
        assert "nothing is justified" in accelerator.justified(found({}, state, cudnn=1, triton=2, xla=9))


def test_a_part_is_stopped_at_its_limit_and_leaves_its_file(accelerator, tmp_path):
    start = time.monotonic()
    env = accelerator.environment(tmp_path, smoke=True)
    accelerator.run_part("kernels", tmp_path, 0.5, env, smoke=True)
    assert time.monotonic() - start < 30
    assert json.loads((tmp_path / "kernels.json").read_text())["state"] == "stopped at its limit"


def test_all_parts_together_take_less_than_eight_minutes(accelerator):
    assert sum(accelerator.LIMITS.values()) <= 480


@pytest.mark.slow
@pytest.mark.parametrize("part", ["filter_1b", "train_8b"])
def test_a_part_runs_where_only_the_bare_machine_s_packages_are(part, tmp_path):
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name} is not there')")
    env = os.environ | {"OUT": str(tmp_path / "out"), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), "--smoke", part]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    made = json.loads((tmp_path / "out" / f"{part}.json").read_text())
    assert made["state"] == "done" and not [note for note in made["notes"] if "failed" in note]
    assert "of_matmul" in (tmp_path / "out/summary.txt").read_text()
