"""Programs that are kept on disk and counted (lm/devices/programs.py)."""

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from rationalyst_jax.lm.devices import programs as module
from rationalyst_jax.lm.devices.programs import Programs, keep_none, programs_kept

FOLDER = "jax_compilation_cache_dir"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of programs of a user with an empty cache, who tells JAX nothing."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = getattr(jax.config, FOLDER)
    jax.config.update(FOLDER, None)
    yield tmp_path / "rationalyst_jax" / "programs"
    jax.config.update(FOLDER, before)
    reset_cache()


def compute() -> Programs:
    """What a fresh process counts that runs one small program."""
    jax.clear_caches()
    x = jax.device_put(3.0)
    with programs_kept() as programs:

        @jax.jit
        def cube(x: jax.Array) -> jax.Array:
            return x * x * x

        cubed = cube(x)
    assert cubed == 27
    return programs


def kept(cache: Path) -> list[Path]:
    return sorted(cache.glob("jit_cube-*-cache"))


def test_a_program_that_was_compiled_is_loaded_the_next_time(cache: Path):
    first = compute()
    second = compute()
    assert (first.compiled, first.loaded) == (1, 0)
    assert (second.compiled, second.loaded) == (0, 1)
    assert len(kept(cache)) == 1
    assert str(second) == "programs: 1 loaded from disk"


def test_outside_nothing_is_kept_or_counted(cache: Path):
    programs = compute()
    jax.clear_caches()
    jax.jit(jnp.cos)(1.0)
    assert programs.compiled == 1
    assert getattr(jax.config, FOLDER) is None
    assert len(list(cache.glob("*-cache"))) == 1


def test_a_folder_that_the_user_named_is_the_one(cache: Path, tmp_path: Path):
    jax.config.update(FOLDER, str(tmp_path / "own"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        assert compute().compiled == 1
        assert compute().loaded == 1
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    assert kept(tmp_path / "own")
    assert not cache.exists()


def test_jax_s_own_switch_turns_it_off(cache: Path):
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert compute().compiled == 1
        assert compute().compiled == 1
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not cache.exists()


def test_processes_that_compile_together_keep_nothing_of_their_own_accord(cache: Path):
    jax.clear_caches()
    with programs_kept() as programs:
        keep_none()
        jax.jit(jnp.sin)(1.0)
    assert programs.compiled
    assert not programs.unkept
    assert not cache.exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: b"", lambda data: bytes(len(data))])
def test_what_a_killed_process_wrote_half_is_compiled_once_more_and_no_more(cache: Path, damage):
    compute()
    [file] = kept(cache)
    file.write_bytes(damage(file.read_bytes()))
    assert compute().compiled == 1  # and no warning, which would be an error here
    compute()
    assert compute().loaded == 1
    zlib.decompress(file.read_bytes())


def test_a_folder_that_cannot_be_written_is_named_once(cache: Path):
    cache.parent.mkdir()
    cache.write_text("a file")
    programs = compute()
    assert programs.compiled == 1
    assert str(programs).endswith(f"s; none could be kept in {cache}")


def test_a_folder_that_cannot_be_read_is_no_fault(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def iterdir(path: Path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert compute().compiled == 1


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    assert compute().compiled == 1
    assert compute().compiled == 1


def test_what_was_used_longest_ago_goes_first(cache: Path, monkeypatch: pytest.MonkeyPatch):
    compute()
    [file] = kept(cache)
    old = [
        file.with_name(f"jit_{name}-{'0' * 64}-cache") for name in ("older", "old")
    ]  # of about 1,000 bytes
    for days, other in zip((20, 10), old, strict=True):
        other.write_bytes(zlib.compress(os.urandom(1000)))
        then = file.stat().st_mtime - days * 86_400
        os.utime(other, (then, then))
    (cache / "notes").write_text("not ours")
    os.utime(cache / "notes", (0, 0))
    monkeypatch.setattr(module, "MOST_BYTES", file.stat().st_size + 1100)
    file.unlink()
    compute()
    assert {*cache.iterdir()} == {file, old[1], cache / "notes"}


def run(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache.parents[1])}
    command = [sys.executable, "-m", "rationalyst_jax.cli.main", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_second_command_compiles_nothing(cache: Path, tmp_path: Path):
    row = {
        "id": "1",
        "question": "Ann has 3 apples. She gets 4 more. How many are there?",
        "choices": {"text": ["3 apples.", "7 apples."], "label": ["A", "B"]},
        "answerKey": "B",
    }
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps(row))
    said = []
    for out in ("first", "second"):
        files = (f"--questions={questions}", f"--out={tmp_path / out}")
        done = run(cache, "choose", "--task=arc", "--model=world", *files)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        said.append(done.stdout.splitlines()[-1])
    assert " compiled in " in said[0]
    assert said[1].startswith("programs: ") and "compiled" not in said[1]
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_command_that_computes_nothing_makes_no_folder(cache: Path):
    assert (
        run(cache, "world", "questions", "--count=1", f"--out={cache.parents[1] / 'q.jsonl'}").returncode == 0
    )
    assert not cache.exists()
