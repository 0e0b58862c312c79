"""What a kill, a full disk or another run's settings may do to files: nothing."""

import errno
import fcntl
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.rows import (
    append_rows,
    filled_field,
    kept_rows,
    read_rows,
    text_field,
    write_rows,
)
from rationalyst_jax.files.settings import claimed, differences, digest
from rationalyst_jax.files.whole import in_words, read_json, whole, write_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def test_a_file_is_there_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"
    with pytest.raises(OSError, match="disk full"), whole(path) as unfinished:
        unfinished.write_text("half")
        raise OSError("disk full")
    assert not path.exists()
    with whole(path) as unfinished:
        unfinished.write_text("all")
    assert path.read_text() == "all" and [p.name for p in path.parent.iterdir()] == ["file"]
    with pytest.raises(ValueError, match="file: not JSON"):
        read_json(path)


def test_rows_are_read_with_their_places(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "x"}\n\n{"a": "\u2028", "b": 1.5}\n{"a": "\\ud83d\\ude00 \\\\ud"}')
    assert list(read_rows(path)) == [
        (f"{path}:1", {"a": "x"}),
        (f"{path}:3", {"a": "\u2028", "b": 1.5}),
        (f"{path}:4", {"a": "\U0001f600 \\ud"}),
    ]
    for text, message in {
        "[1]\n": r"jsonl:1: expected an object, found \[1\]",
        "\n": "holds no rows",
        "{}\n" + "[" * 200_000: "jsonl:2: not JSON: maximum recursion depth",
        '{"a": [NaN]}': "jsonl:1: not JSON: NaN is no finite number",
        '{"a": -Infinity}': "jsonl:1: not JSON: -Infinity is no finite number",
        '{"a": 1e999}': "jsonl:1: not JSON: 1e999 is no finite number",
        '{"a": {"\\uD800": 1}}': "jsonl:1: not JSON: .*surrogates not allowed",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            list(read_rows(path))


def test_fields_are_text():
    row = {"a": "x", "n": 1, "none": None, "blank": " "}
    assert text_field(row, "a", "here") == "x" and text_field(row, "b", "here", default="y") == "y"
    assert text_field(row, "blank", "here") == " "
    for key, message in {"b": "no 'b'", "n": "must be text, found 1", "none": "found None"}.items():
        with pytest.raises(ValueError, match=f"here: .*{message}"):
            text_field(row, key, "here")
    with pytest.raises(ValueError, match="here: 'blank' is empty"):
        filled_field(row, "blank", "here")


@given(
    rows=st.lists(st.dictionaries(st.text(), JSON, max_size=3), min_size=1, max_size=7), cut=st.floats(0, 1)
)
def test_what_is_left_of_a_killed_run_and_what_is_done_again_make_the_whole(tmp_path_factory, rows, cut):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    numbered = [{**row, "number": number} for number, row in enumerate(rows)]
    write_rows(path, numbered)
    every_byte = path.read_bytes()
    path.write_bytes(every_byte[: round(cut * len(every_byte))])
    kept = kept_rows(path, lambda place, row: row["number"])
    assert list(kept.items()) == list(enumerate(numbered[: len(kept)]))
    append_rows(path, numbered[len(kept) :])
    assert path.read_bytes() == every_byte


def test_of_two_rows_with_a_key_the_later_counts_and_what_fits_no_more_is_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"key": 1, "n": 0}, {"key": 2, "n": 0}, {"key": 1, "n": 1}])
    kept = kept_rows(path, lambda place, row: row["key"] if row["key"] != 2 else None)
    assert kept == {1: {"key": 1, "n": 1}}


def test_a_file_of_another_run_is_not_cut(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"n": n} for n in range(5)])
    path.write_bytes(path.read_bytes() + b'{"n"')
    before = path.read_bytes()

    def refuse(place, row):
        raise ValueError(f"{place}: not ours")

    with pytest.raises(ValueError, match="jsonl:1: not ours"):
        kept_rows(path, refuse)
    assert path.read_bytes() == before


def claim(*arguments) -> None:
    with claimed(*arguments):
        pass


def test_settings_bind_once_there_is_work(tmp_path):
    settings, work = tmp_path / "config.json", tmp_path / "work"
    claim(settings, {"a": 1}, work)
    claim(settings, {"a": (1, 2), "b": {"c": None}}, work)  # no work yet: nobody is bound
    work.write_text("work")
    claim(settings, {"a": (1, 2), "b": {"c": None}}, work)
    with pytest.raises(ValueError, match=r"other settings: a \[1, 2\] -> 3; b.c None -> 4; d None -> 5;"):
        claim(settings, {"a": 3, "b": {"c": 4}, "d": 5}, work)
    settings.unlink()
    with pytest.raises(ValueError, match=r"config\.json: is missing"):
        claim(settings, {"a": 1}, work)


HOLDING = """
import sys, time
from pathlib import Path
from rationalyst_jax.files.lock import locked
with locked(Path(sys.argv[1])):
    print("taken", flush=True)
    time.sleep(600)
"""


def test_a_lock_names_the_process_that_has_it_and_dies_with_it(tmp_path):
    output = tmp_path / "new" / "out.jsonl"
    holder = subprocess.Popen([sys.executable, "-c", HOLDING, str(output)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "taken\n"
    message = rf"out\.jsonl: process {holder.pid} is writing it: wait for it, or write elsewhere"
    with pytest.raises(ValueError, match=message), locked(output):
        raise AssertionError("taken twice")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(output):
        assert (tmp_path / "new" / "out.jsonl.lock").exists()
    assert not list((tmp_path / "new").iterdir())


def test_a_lock_that_is_let_go_is_free_and_locks_of_other_outputs_are_others(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "a"), locked(tmp_path / "b"):
            with pytest.raises(ValueError, match="a: process"), locked(tmp_path / "a"):
                raise AssertionError("taken twice")


def test_a_lock_whose_file_was_just_removed_is_taken_anew(tmp_path, monkeypatch):
    """Another process lets go of it between our opening and our locking the file."""
    lock = tmp_path / "a.lock"
    taken = []

    def flock(*_):
        if not taken:
            lock.unlink()
        taken.append(lock.exists())

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "a"):
        assert lock.exists() and taken == [False, True]


def test_a_lock_that_was_taken_a_moment_ago_names_no_process(tmp_path):
    with locked(tmp_path / "a"):
        (tmp_path / "a.lock").write_bytes(b"")
        with pytest.raises(ValueError, match="a: another process is writing it"), locked(tmp_path / "a"):
            raise AssertionError("taken twice")


def test_a_full_disk_names_the_file(tmp_path, small_disk):
    small_disk(tmp_path, "64k")
    for write in (append_rows, write_rows):
        with pytest.raises(OSError, match="No space left") as found:
            write(tmp_path / "rows.jsonl", [{"text": "x" * 2**17}])
        assert found.value.filename == str(tmp_path / "rows.jsonl")


@given(JSON, JSON)
def test_differences_are_found_where_there_are_any(made, asked):
    made, asked = json.loads(json.dumps([made, asked]))
    assert not list(differences(made, made))
    if made != asked and not (isinstance(made, dict) and isinstance(asked, dict)):
        assert len(list(differences(made, asked))) == 1


def test_an_error_of_the_system_is_told_with_its_file_and_without_its_number():
    assert (
        in_words(OSError(errno.ENOSPC, "No space left on device", "out/a"))
        == "out/a: No space left on device"
    )
    assert in_words(OSError(errno.EPIPE, "Broken pipe")) == "Broken pipe"
    assert in_words(OSError("no folder")) == in_words(ValueError("no folder")) == "no folder"


def test_a_digest_knows_where_parts_end():
    assert digest([b"ab", b"c"]) != digest([b"a", b"bc"]) and len(digest([])) == 16


def test_json_is_written_for_people(tmp_path):
    write_json(tmp_path / "x.json", {"é": [1]})
    assert (tmp_path / "x.json").read_text() == '{\n  "é": [\n    1\n  ]\n}\n'
