"""Stages over shards, in workers and a process that die: what they make stays the same, to the byte."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import shard_stages

from rationalyst_jax.files.whole import read_json, write_json
from rationalyst_jax.pipeline import workers
from rationalyst_jax.pipeline.markers import status
from rationalyst_jax.pipeline.sharded import ShardedRun

SCRIPT = Path(shard_stages.__file__)


def write_shards(root: Path, shards: int) -> Path:
    """The last shard is empty, and that before it has a malformed row."""
    (root / "shards").mkdir(parents=True)
    for shard in range(shards):
        rows = [{"id": f"{shard}-{i}", "text": f"text {i} of {shard}"} for i in range(3)]
        lines = [json.dumps(row) for row in rows if shard < shards - 1]
        if shard == shards - 2:
            lines[1] = lines[1][:-1]
        (root / "shards" / f"s{shard:02}.jsonl").write_text("".join(line + "\n" for line in lines))
    return root


def made(run_dir: Path) -> dict[str, bytes]:
    """All that the stages made, by the names of files."""
    files = (path for path in run_dir.rglob("*.jsonl") if path.name != "part.jsonl")
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in files}


def opened(root: Path) -> int:
    """How many workers have opened what they keep."""
    return len((root / "opened.jsonl").read_text().splitlines())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_shards(tmp_path, 4)


def test_40_shards_on_four_workers_of_which_one_dies_three_times_are_as_undisturbed(tmp_path):
    root = write_shards(tmp_path, 40)
    shard_stages.run(root, tmp_path / "whole", workers=1)
    assert opened(root) == 1
    for death in range(3):
        (root / f"die-s07-{death}").touch()
    work = shard_stages.run(root, tmp_path / "disturbed", workers=4)
    assert not work.failed and not list(root.glob("die-*"))
    assert opened(root) == 1 + 4 + 3
    assert made(tmp_path / "disturbed") == made(tmp_path / "whole")
    [row] = (tmp_path / "disturbed" / "read" / "s38" / "bad.jsonl").read_text().splitlines()
    assert f"{root}/shards/s38.jsonl:2: not JSON" in json.loads(row)["error"]
    found = {stage.name: stage for stage in status(tmp_path / "disturbed")}
    assert [found[name].done for name in ("read", "annotate", "count")] == [40, 40, 1]
    assert (found["read"].tally.taken, found["read"].tally.made) == (39 * 3, 39 * 3 - 1)
    assert found["read"].tally.counts == {"bad": 1}
    assert found["annotate"].tally.flops == 100 * (39 * 3 - 1)
    # Each shard takes 10 tokens; of what a worker had computed when it died, the last second is not counted.
    assert 10 * 38 <= found["annotate"].tokens <= 10 * 41 and found["annotate"].seconds > 0


def test_a_run_that_is_there_is_not_done_again(root):
    shard_stages.run(root, root / "run", workers=1)
    before = made(root / "run")
    shard_stages.run(root, root / "run", workers=2)
    assert opened(root) == 1 and made(root / "run") == before


def test_what_depends_on_a_changed_shard_is_done_again_and_nothing_else(root):
    run_dir = root / "run"
    shard_stages.run(root, run_dir, workers=1)
    seen = {path: path.stat().st_mtime_ns for path in (run_dir / "annotate").rglob("annotated.jsonl")}
    shard = root / "shards" / "s01.jsonl"
    shard.write_text(shard.read_text().replace("text 0", "mended"))
    (root / "shards" / "s00.jsonl").touch()  # read again, to the same bytes
    shard_stages.run(root, run_dir, workers=1)
    changed = [path.parent.name for path, time in seen.items() if path.stat().st_mtime_ns != time]
    assert changed == ["s01"]
    assert b"MENDED OF 1" in (run_dir / "merge" / "all.jsonl").read_bytes()
    again = write_shards(root / "again", 4)
    (again / "shards" / "s01.jsonl").write_bytes(shard.read_bytes())
    shard_stages.run(again, root / "whole", workers=1)
    for name, content in made(root / "whole").items():
        assert made(run_dir)[name] == content or name.endswith("bad.jsonl")  # that has paths


def done_and_again(run_dir: Path) -> dict[str, tuple[int, int]]:
    return {stage.name: (stage.done, stage.again) for stage in status(run_dir)}


DONE = {"read": (4, 0), "annotate": (4, 0), "count": (1, 0), "number": (4, 0), "merge": (1, 0)}
AGAIN = {name: (0, tasks) for name, (tasks, _) in DONE.items()}


def test_what_a_run_would_do_again_does_not_count_as_done(root):
    run_dir = root / "run"
    shard_stages.run(root, run_dir, workers=1)
    before = status(run_dir)[1]
    assert done_and_again(run_dir) == DONE
    shard = root / "shards" / "s01.jsonl"
    shard.write_text(shard.read_text().replace("text 0", "mended"))
    # What takes files of all shards is to be looked at again, too.
    assert done_and_again(run_dir) == AGAIN | {"read": (3, 1), "annotate": (3, 1)}
    after = status(run_dir)[1]
    assert after.tally.taken == before.tally.taken - 3
    assert (after.tally.flops, after.tokens, after.seconds) == (
        before.tally.flops,
        before.tokens,
        before.seconds,
    )
    shard_stages.run(root, run_dir, workers=1)
    assert done_and_again(run_dir) == DONE
    whole = status(run_dir)[1]  # costs are of all work, that of changed shards too
    assert whole.tokens > before.tokens and whole.tally.flops > before.tally.flops
    (run_dir / "number" / "s02" / "numbered.jsonl").unlink()
    assert done_and_again(run_dir) == DONE | {"number": (3, 1), "merge": (0, 1)}


def test_nothing_that_was_made_with_other_settings_counts_as_done(root):
    shard_stages.run(root, root / "run", workers=1)
    ShardedRun(
        root / "run", shard_stages.shards_of(root), shard_stages.STAGES, {"a": "new setting"}, losses=0
    )
    assert done_and_again(root / "run") == AGAIN


def test_shards_that_were_moved_count_as_the_run_saw_them(root):
    shard_stages.run(root, root / "run", workers=1)
    (root / "shards").rename(root / "elsewhere")
    assert done_and_again(root / "run") == DONE


def test_the_status_of_a_run_of_an_earlier_version_is_refused(tmp_path):
    write_json(tmp_path / "shards.json", {"shards": ["a"], "stages": {"read": False}})
    with pytest.raises(ValueError, match=r"shards\.json: begun by an earlier version"):
        status(tmp_path)
    write_json(tmp_path / "shards.json", {"settings": "a", "shards": {"a": {}}, "stages": []})
    with pytest.raises(ValueError, match=r"shards\.json: not the plan of a run \(KeyError\('path'\)\)"):
        status(tmp_path)


def test_a_new_shard_is_done_and_one_that_is_gone_is_left_out(root):
    run_dir = root / "run"
    shard_stages.run(root, run_dir, workers=1)
    (root / "shards" / "s00.jsonl").rename(root / "shards" / "s09.jsonl")
    shard_stages.run(root, run_dir, workers=1)
    found = {stage.name: stage for stage in status(run_dir)}
    assert found["read"].tasks == found["read"].done == 4
    lines = (run_dir / "merge" / "all.jsonl").read_text().splitlines()
    assert len(lines) == 4 and "TEXT 0 OF 0" in lines[-1]


def test_a_refused_shard_holds_up_no_other_but_what_needs_all(root):
    (root / "refuse-s01").touch()
    work = shard_stages.run(root, root / "run", workers=2)
    assert work.failed == {"stage annotate of s01": "s01: is not to be had"}
    assert [stage.done for stage in status(root / "run")] == [4, 3, 0, 0, 0]
    (root / "refuse-s01").unlink()
    assert not shard_stages.run(root, root / "run", workers=2).failed
    assert [stage.done for stage in status(root / "run")] == [4, 4, 1, 4, 1]


def test_a_shard_whose_workers_die_again_and_again_ends_the_run_with_its_name(root):
    for death in range(3):
        (root / f"die-s01-{death}").touch()
    with pytest.raises(
        ValueError, match=r"^stage annotate of s01: its worker died 2 times, at last of SIGKILL;"
    ):
        shard_stages.run(root, root / "run", workers=2, losses=1)
    (root / "die-s01-2").unlink()
    (root / "raise-s01").touch()
    with pytest.raises(ValueError, match=r"its worker died 1 times, at last of TypeError: a bug"):
        shard_stages.run(root, root / "run", workers=1, losses=0)
    (root / "raise-s01").unlink()
    shard_stages.run(root, root / "run", workers=1)
    shard_stages.run(root, root / "whole", workers=1)
    assert made(root / "run") == made(root / "whole")


def wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("waited for a minute")


def is_there(process: int) -> bool:
    """Whether a process is there, and no zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_takes_its_workers_with_it_and_goes_on_to_the_same_bytes(root, number):
    (root / "wait-s01").touch()
    run = subprocess.Popen(
        [sys.executable, SCRIPT, root, root / "run"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    waits = root / "waits-s01"
    wait_for(lambda: waits.exists() and "s01" in status(root / "run")[1].at_work)
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    worker = int(waits.read_text())
    if number == signal.SIGKILL:
        wait_for(lambda: not is_there(worker))
    assert not is_there(worker)
    if number == signal.SIGTERM:
        assert said == "stopped by SIGTERM; the same command goes on from here\n"
    annotated = status(root / "run")[1]
    assert annotated.begun >= 1 and annotated.at_work["s01"][1] == 3
    begun = read_json(root / "run" / "stages" / "annotate" / "s01.json")
    assert "output" not in begun and (root / "run" / "annotate" / "s01" / "part.jsonl").read_bytes()
    (root / "wait-s01").unlink()
    assert not shard_stages.run(root, root / "run", workers=2).failed
    shard_stages.run(root, root / "whole", workers=1)
    assert made(root / "run") == made(root / "whole")


def test_each_worker_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert workers.environments(None) == [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    assert workers.environments(1) == [{"CUDA_VISIBLE_DEVICES": "3"}]
    with pytest.raises(ValueError, match="3 workers want a GPU each, there are 2"):
        workers.environments(3)
    assert workers.environments(None, gpus=False) == [{}]
    assert workers.environments(3, gpus=False) == [{}, {}, {}]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert workers.environments(None) == [{}] and workers.environments(3) == [{}, {}, {}]


def test_a_stage_takes_what_the_last_stage_before_it_made(root):
    shard_stages.run(root, root / "run", workers=1)
    total = (root / "run" / "count" / "total.jsonl").read_text()
    merged = map(json.loads, (root / "run" / "merge" / "all.jsonl").read_text().splitlines())
    annotated = [(root / "run" / "annotate" / f"s0{i}" / "annotated.jsonl").read_text() for i in range(4)]
    assert list(merged) == [{"of": total, "shard": text} for text in annotated]
