"""Stages over shards, divided among the ranks of a cluster: what they make is what one machine makes."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cluster_run
import pytest
import shard_stages
from test_sharded import is_there, made, opened, wait_for, write_shards

from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.rows import append_rows, read_file
from rationalyst_jax.pipeline import clusters
from rationalyst_jax.pipeline.clusters import Ranks, check_executor, do_rank
from rationalyst_jax.pipeline.markers import status
from rationalyst_jax.pipeline.mine_config import ClusterConfig
from rationalyst_jax.pipeline.sharded import ShardedRun, StageGroup


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_shards(tmp_path, 4)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No workers: test_sharded.py is about them."""
    monkeypatch.setattr(clusters, "supervise", shard_stages.supervise_in_process)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[StageGroup]:
    """In place of Slurm: here, one rank after another. The groups that were started."""
    started: list[StageGroup] = []

    @contextmanager
    def here(config: ClusterConfig, run_dir: Path, console: object) -> Iterator[clusters.Start]:
        def start(group: StageGroup, step: clusters.RankStep) -> None:
            started.append(group)
            tasks = clusters._settings(step, group, config, run_dir)["tasks"]
            for rank in range(tasks):
                try:
                    step(None, rank, tasks)
                except ValueError as error:
                    append_rows(run_dir / "ranks.jsonl", [{"rank": rank, "error": str(error)}])

        yield start

    monkeypatch.setitem(clusters._EXECUTORS, "slurm", here)
    return started


def run(root: Path, tasks: int = 2) -> ShardedRun:
    return cluster_run.run("slurm", root, root / "run", ClusterConfig(tasks=tasks))


def test_ranks_make_what_one_machine_makes_and_open_what_they_keep_once_a_group(root, groups):
    shard_stages.run(root, root / "whole", workers=1)
    (root / "die-s02-0").touch()
    assert run(root, tasks=3).is_done and not (root / "die-s02-0").exists()
    assert made(root / "run") == made(root / "whole")
    assert [stage.done for stage in status(root / "run")] == [4, 4, 1, 4, 1]
    assert [list(group.stages) for group in groups] == [
        ["read", "annotate"],
        ["count"],
        ["number"],
        ["merge"],
    ]
    assert opened(root) == 1 + (3 + 1) + 1 + 3 + 1  # a worker died, and its rank replaced it


def test_only_what_is_left_is_divided_among_ranks(root, groups, in_process):
    run(root)
    shard = root / "shards" / "s01.jsonl"
    shard.write_text(shard.read_text().replace("text 0", "mended"))
    groups.clear()
    assert run(root).is_done
    assert [dict(group.left) for group in groups] == [
        {"s01": "read"},
        {None: "count"},
        {"s01": "number"},
        {None: "merge"},
    ]
    shard_stages.run(root, root / "whole", workers=1)
    assert made(root / "run") == made(root / "whole")
    groups.clear()
    assert run(root).is_done and not groups


def test_a_rank_takes_each_nth_shard_that_is_left():
    group = StageGroup(["read"], dict.fromkeys("abcde", "read"))
    assert [list(group.share(rank, 2).left) for rank in range(2)] == [["a", "c", "e"], ["b", "d"]]


def test_a_rank_leaves_gpus_alone_where_no_stage_has_a_model(root, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    seen: list[Any] = []
    monkeypatch.setattr(clusters, "supervise", lambda work, opened, perform, places: seen.append(places))
    planned = partial(
        ShardedRun, root / "run", shard_stages.shards_of(root), shard_stages.STAGES, {}, losses=0
    )
    ranks = Ranks(planned, partial(shard_stages.opened, root), workers=None)
    for has_model in (False, True):
        with pytest.raises(ValueError, match=r"^read: what they take is not there$"):
            do_rank(ranks, StageGroup(["read"], {"s00": "read"}, has_model), 0, 1)
    assert seen == [[{}], [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]]


def test_what_one_rank_refuses_is_told_and_the_next_group_waits_for_it(root, groups, in_process):
    (root / "refuse-s01").touch()
    work = run(root)
    assert work.failed == {"stage annotate of s01": "s01: is not to be had"}
    [(_, told)] = read_file(root / "run" / "ranks.jsonl")
    assert told == {"rank": 1, "error": "stage annotate of s01: s01: is not to be had"}
    assert [stage.done for stage in status(root / "run")] == [4, 3, 0, 0, 0]
    assert status(root / "run")[1].refused == {"s01": "s01: is not to be had"}
    assert len(groups) == 1
    (root / "refuse-s01").unlink()
    assert run(root).is_done
    assert not any(stage.refused for stage in status(root / "run"))


def test_a_rank_that_ends_amid_its_work_is_told_with_its_shards(root, groups, monkeypatch):
    monkeypatch.setattr(clusters, "do_rank", lambda ranks, group, rank, world_size: None)
    work = run(root)
    logs = root / "run" / "ranks" / "read"
    why = f"its rank ended before it; logs of ranks are in {logs}"
    assert work.failed == {f"stage read of s0{i}": why for i in range(4)}
    assert len(groups) == 1


def test_two_processes_never_do_the_same_task(root, groups, in_process):
    marker = root / "run" / "stages" / "annotate" / "s01.json"
    with locked(marker):
        work = run(root)
    assert work.failed.keys() == {"stage annotate of s01"}
    [(_, told)] = read_file(root / "run" / "ranks.jsonl")
    assert f"{marker}: process {os.getpid()} is writing it" in told["error"]
    assert [stage.done for stage in status(root / "run")] == [4, 3, 0, 0, 0]
    assert run(root).is_done


def test_a_rank_begins_nothing_whose_input_is_not_there(root):
    planned = partial(
        ShardedRun, root / "run", shard_stages.shards_of(root), shard_stages.STAGES, {}, losses=0
    )
    ranks = Ranks(planned, partial(shard_stages.opened, root), workers=1)
    with pytest.raises(ValueError, match=r"^number: what they take is not there$"):
        do_rank(ranks, StageGroup(["number"], {"s00": "number"}), 0, 1)
    assert not (root / "run").exists()


@pytest.mark.parametrize("name", ["tasks", "at_once", "cpus_per_task", "mem_per_cpu_gb"])
def test_settings_out_of_range_are_named(name):
    with pytest.raises(ValueError, match=rf"^cluster: {name} must be at least 1, got 0$"):
        ClusterConfig(**{name: 0})  # pyright: ignore[reportArgumentType]


def test_a_cluster_that_cannot_be_used_is_told_in_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "datatrove", None)
    with pytest.raises(
        ValueError, match=r"^datatrove is not installed: pip install 'rationalyst_jax\[web\]'$"
    ):
        check_executor("slurm")
    monkeypatch.setattr(clusters, "_imported", lambda module: None)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(ValueError, match=r"^--executor slurm: there is no sbatch on this machine$"):
        check_executor("slurm")


# ---- Real clusters ----


@pytest.fixture
def partition() -> str:
    """The first partition of a Slurm that answers."""
    if find_spec("datatrove") is None:
        pytest.skip("needs datatrove: the extra web")
    if shutil.which("sinfo") is None:
        pytest.skip("needs Slurm: there is no sinfo here")
    said = subprocess.run(["sinfo", "--noheader", "--format=%R"], capture_output=True, text=True)
    if said.returncode:
        pytest.skip(f"needs a Slurm that answers: {said.stderr.strip()}")
    return said.stdout.split()[0]


def command(executor: str, root: Path, *partition: str) -> dict[str, Any]:
    paths = os.pathsep.join(filter(None, sys.path))
    return {
        "args": [sys.executable, Path(cluster_run.__file__), executor, root, root / "run", *partition],
        "env": os.environ | {"PYTHONPATH": paths, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"},
        "stdout": subprocess.PIPE,
        "text": True,
    }


def start(executor: str, root: Path, *partition: str) -> subprocess.Popen:
    return subprocess.Popen(**command(executor, root, *partition))


def waiting_worker(waits: Path) -> int:
    """The process that waits amid a shard; for up to four minutes there is none, on a busy machine."""
    for _ in range(4):
        if not waits.exists():
            with suppress(AssertionError):
                wait_for(waits.exists)
    wait_for(lambda: bool(waits.read_text()))
    return int(waits.read_text())


def kill_the_rank_of_s07(root: Path) -> None:
    """While it has done a part of this shard."""
    worker = waiting_worker(root / "waits-s07")
    rank = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(rank, signal.SIGKILL)
    (root / "wait-s07").unlink()


@pytest.mark.slow  # a minute
def test_40_shards_through_slurm_with_a_rank_killed_are_as_on_one_machine(tmp_path, partition):
    root = write_shards(tmp_path, 40)
    shard_stages.run(root, root / "whole", workers=1)
    (root / "wait-s07").touch()
    disturbed = start("slurm", root, partition)
    kill_the_rank_of_s07(root)
    said, _ = disturbed.communicate()
    assert disturbed.returncode == 1
    assert "stage annotate of s07: its rank ended before it" in said
    found = {stage.name: stage for stage in status(root / "run")}
    assert 30 <= found["annotate"].done < 40 and found["count"].begun == found["count"].done == 0
    again = start("slurm", root, partition)
    said, _ = again.communicate()
    assert again.returncode == 0, said
    check(root)


@pytest.mark.slow  # a minute
def test_40_shards_through_ray_with_a_rank_killed_are_as_on_one_machine(tmp_path):
    for module in ("datatrove", "ray"):
        if find_spec(module) is None:
            pytest.skip(f"needs {module}: the extra web")
    root = write_shards(tmp_path, 40)
    shard_stages.run(root, root / "whole", workers=1)
    (root / "wait-s07").touch()
    disturbed = start("ray", root)
    kill_the_rank_of_s07(root)
    said, _ = disturbed.communicate()
    assert disturbed.returncode == 0, said  # Ray has seen it die, and datatrove has started another one
    check(root)


@pytest.mark.slow  # half a minute
@pytest.mark.parametrize("executor", ["slurm", "ray"])
def test_sigterm_ends_the_command_and_all_ranks(tmp_path, executor, request):
    where = [request.getfixturevalue("partition")] if executor == "slurm" else []
    if find_spec(executor if executor == "ray" else "datatrove") is None:
        pytest.skip(f"needs {executor}: the extra web")
    root = write_shards(tmp_path, 4)
    (root / "wait-s01").touch()
    run = subprocess.Popen(**command(executor, root, *where), stderr=subprocess.PIPE)
    worker = waiting_worker(root / "waits-s01")
    run.terminate()
    _, said = run.communicate(timeout=120)
    assert said == "stopped by SIGTERM; the same command goes on from here\n"  # no other cluster is begun
    wait_for(lambda: not is_there(worker))


def check(root: Path) -> None:
    assert made(root / "run") == made(root / "whole")
    [(_, row)] = read_file(root / "run" / "read" / "s38" / "bad.jsonl")
    assert row["error"].startswith(f"{root}/shards/s38.jsonl:2: not JSON")
    assert [stage.done for stage in status(root / "run")] == [40, 40, 1, 40, 1]
