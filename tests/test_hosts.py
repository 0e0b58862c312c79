"""Work divided among hosts: parts are put together to the bytes of one process, whoever dies meanwhile."""

import http.server
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cli_files import rationalyst, triple

from rationalyst_jax.cli.main import parser_of
from rationalyst_jax.files.interruption import Interrupted
from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.parts import ALONE, DividedFile, HostShard, OthersAtWork, Waiting, parts_of
from rationalyst_jax.files.rows import Row, append_rows, kept_rows, read_rows, write_rows
from rationalyst_jax.lm.devices.shards import shard_of
from rationalyst_jax.mine.store import Provenance, write_triples
from rationalyst_jax.world.corpus import questions

NAMES = [f"q{i}" for i in range(7)]
HALVES = (HostShard(0, 2), HostShard(1, 2))


# ---- Which shard this is ----

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
SLURM |= {"SLURM_NTASKS": "2"}
GKE = {"TPU_WORKER_HOSTNAMES": "a,b,c", "TPU_WORKER_ID": "1"}


@pytest.mark.parametrize(
    ("asked", "environ", "found"),
    [
        ("auto", {}, ALONE),
        ("auto", SLURM, HostShard(1, 2)),
        ("auto", SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, ALONE),
        # The script of a job sees the number of its tasks, but runs once.
        ("auto", {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}, ALONE),
        ("auto", GKE, HostShard(1, 3)),
        ("auto", GKE | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}, HostShard(4, 6)),
        ("auto", {"TPU_WORKER_HOSTNAMES": "a,b", "JOB_COMPLETION_INDEX": "1"}, HostShard(1, 2)),
        # Kaggle's and Colab's one host.
        ("auto", {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, ALONE),
        ("auto", GKE | {"JAX_PLATFORMS": "cpu"}, ALONE),
        ("none", SLURM, ALONE),
        ("2/3", SLURM, HostShard(2, 3)),
        ("0/1", {}, ALONE),
    ],
)
def test_the_shard_is_what_is_asked_for_or_what_the_environment_names(asked, environ, found):
    assert shard_of(asked, environ) == found


@pytest.mark.parametrize(
    ("asked", "environ", "message"),
    [
        ("3/2", {}, "3/2: of N shards the first is 0/N and the last (N-1)/N"),
        ("2/2", {}, "2/2: of N shards"),
        ("0/0", {}, "0/0: of N shards"),
        ("a/b", {}, "'a/b': a shard is written I/N, or auto, tpu or none"),
        ("-1/2", {}, "'-1/2': a shard is written"),
        ("", {}, "'': a shard is written"),
        ("auto", {"TPU_WORKER_HOSTNAMES": "a,b"}, "no TPU_WORKER_ID says which one this is"),
        ("auto", GKE | {"MEGASCALE_NUM_SLICES": "2"}, "no MEGASCALE_SLICE_ID says which one this is"),
    ],
)
def test_a_shard_that_cannot_be_is_refused(asked, environ, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        shard_of(asked, environ)


class Metadata(http.server.BaseHTTPRequestHandler):
    """What a Cloud TPU VM's metadata server says to worker 1 of 2 in the second of two slices."""

    says: ClassVar = {
        "agent-worker-number": "1",
        "worker-network-endpoints": "unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2",
        "tpu-env": "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n",
    }

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.says[self.path.rpartition("/")[2]].encode())

    def log_message(self, *arguments: Any) -> None:
        pass


def test_tpu_asks_the_metadata_server(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("TPU_", "MEGASCALE_"))]:
        monkeypatch.delenv(name)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            assert shard_of("tpu") == HostShard(3, 4)
        finally:
            server.shutdown()
    with pytest.raises(ValueError, match=r"tpu: no metadata server of a TPU VM says it \(.*\): give I/N"):
        shard_of("tpu")


# ---- Parts of a file of rows ----


def divided(folder: Path, names: list[str] = NAMES, **changes: Any) -> DividedFile:
    settings = {"seed": 0} | changes
    file = folder / "rows.jsonl"
    return DividedFile(
        file,
        folder / "rows.jsonl.config.json",
        settings,
        names,
        2,
        lambda row: row["id"] if row["id"] in names else None,
        lambda path: path.with_suffix(".ledger.jsonl"),
    )


def work(file: Path, names: list[str], *, most: int = 99) -> int:
    """A stage that makes a row of each name, the last one of a block first; gives how many it made."""
    done = kept_rows(file, lambda place, row: row["id"])
    made = 0
    for first in range(0, len(names), 2):
        for name in reversed(names[first : first + 2]):
            if name not in done and made < most:
                append_rows(file.with_suffix(".ledger.jsonl"), [{"id": name, "took": len(name)}])
                append_rows(file, [{"id": name, "text": f"é of {name}"}])
                made += 1
    return made


def do_part(of: DividedFile, shard: HostShard, **options: Any) -> list[int]:
    with of.part(shard) as (path, numbers):
        work(path, [of.names[number] for number in numbers], **options)
    return numbers


def put_together(of: DividedFile, shard: HostShard) -> int:
    """How many rows are left to make where the parts are together."""
    with of.whole(shard) as file:
        return work(file, list(of.names))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, bytes]:
    """The files of one process, its rows in the order of their names."""
    of = divided(tmp_path / "alone")
    with of.whole(ALONE) as file:
        work(file, NAMES)
        rows = sorted((row for _, row in read_rows(file)), key=lambda row: row["id"])
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return contents(tmp_path / "alone")


def test_parts_in_any_order_make_the_files_of_one_process(tmp_path, alone):
    for order in (HALVES, HALVES[::-1]):
        folder = tmp_path / str(order[0].number)
        of = divided(folder)
        assert do_part(of, order[0]) == [i for i in range(7) if i // 2 % 2 == order[0].number]
        with pytest.raises(OthersAtWork, match=f"shard {order[0]} is done, {order[1]} not yet"):
            put_together(of, order[0])
        do_part(of, order[1])
        assert put_together(of, order[1]) == 0
        assert contents(folder) == alone


def test_more_shards_than_blocks_leave_some_with_nothing_to_do(tmp_path, alone):
    of = divided(tmp_path / "many")
    shards = [HostShard(number, 6) for number in range(6)]
    assert [do_part(of, shard) for shard in shards] == [[0, 1], [2, 3], [4, 5], [6], [], []]
    assert put_together(of, shards[5]) == 0 and contents(tmp_path / "many") == alone


def test_a_part_that_was_killed_goes_on_by_itself(tmp_path, alone):
    of = divided(tmp_path / "killed")
    do_part(of, HALVES[0], most=3)
    [part] = (tmp_path / "killed").rglob("0-of-2.jsonl")
    part.write_bytes(part.read_bytes() + b'{"id": "q5", "te')
    do_part(of, HALVES[1])
    with pytest.raises(OthersAtWork, match="shard 1/2 is done, 0/2 not yet"):
        put_together(of, HALVES[1])
    do_part(of, HALVES[0])
    assert put_together(of, HALVES[0]) == 0 and contents(tmp_path / "killed") == alone


def test_a_part_that_is_complete_but_held_is_left_to_its_process(tmp_path, alone):
    of = divided(tmp_path / "held")
    do_part(of, HALVES[0])
    with of.part(HALVES[1]) as (path, numbers):
        work(path, [NAMES[number] for number in numbers])
        with pytest.raises(OthersAtWork, match="1/2 not yet"):
            put_together(of, HALVES[0])
        with pytest.raises(ValueError, match=r"1-of-2.jsonl: process \d+ is writing it"):
            do_part(of, HALVES[1])
    assert put_together(of, HALVES[1]) == 0 and contents(tmp_path / "held") == alone


def test_of_two_that_finish_at_once_one_puts_together_and_the_other_is_told_so(tmp_path, alone):
    of = divided(tmp_path / "twice")
    for shard in HALVES:
        do_part(of, shard)
    assert put_together(of, HALVES[1]) == 0
    with pytest.raises(OthersAtWork, match=r"shard 0/2 is done, and another one has made .*rows\.jsonl"):
        put_together(of, HALVES[0])
    assert contents(tmp_path / "twice") == alone


def test_a_merge_that_was_killed_is_done_again(tmp_path, alone):
    of = divided(tmp_path / "merge")
    for shard in HALVES:
        do_part(of, shard)
    with pytest.raises(KeyboardInterrupt), of.whole(HALVES[0]):
        raise KeyboardInterrupt
    assert put_together(of, HALVES[1]) == 0 and contents(tmp_path / "merge") == alone


def test_what_is_finished_is_found_finished_by_any_shard(tmp_path, alone):
    of = divided(tmp_path / "again")
    for _ in range(2):
        for shard in HALVES:
            do_part(of, shard)
        assert put_together(of, HALVES[1]) == 0 and contents(tmp_path / "again") == alone
    assert do_part(of, HALVES[0], most=0) and put_together(of, HALVES[0]) == 0  # the other one does not come
    assert contents(tmp_path / "again") == alone


def test_what_one_process_did_before_is_divided_too(tmp_path, alone):
    few = divided(tmp_path / "more", NAMES[:3])
    with few.whole(ALONE) as file:
        work(file, NAMES[:3])
    of = divided(tmp_path / "more")
    for shard in HALVES:
        with of.part(shard) as (path, numbers):
            assert work(path, [NAMES[number] for number in numbers]) == (2, 2)[shard.number]
    assert put_together(of, HALVES[0]) == 0
    rows = [json.loads(line)["id"] for line in (tmp_path / "more" / "rows.jsonl").read_text().splitlines()]
    assert rows == NAMES
    ledger = (tmp_path / "more" / "rows.ledger.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["id"] for line in ledger) == NAMES  # nothing is counted twice


def test_rows_that_nobody_asks_for_now_stay(tmp_path):
    of = divided(tmp_path)
    for shard in HALVES:
        do_part(of, shard)
    few = divided(tmp_path, NAMES[:3])
    assert do_part(few, HALVES[0]) and put_together(few, HALVES[0]) == 0
    rows = [json.loads(line)["id"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows[:3] == NAMES[:3] and sorted(rows) == NAMES


def test_parts_that_do_not_fit_are_refused_and_stay(tmp_path):
    of = divided(tmp_path)
    do_part(of, HALVES[0])
    before = contents(tmp_path)
    begun = r"rows.jsonl.parts: was begun by 2 shards, and now there is to be {}: go on with 0/2 to 1/2"
    with pytest.raises(ValueError, match=begun.format("0/3")):
        do_part(of, HostShard(0, 3))
    with pytest.raises(ValueError, match=begun.format("0/1")):
        put_together(of, ALONE)
    for shard in HALVES:
        with pytest.raises(ValueError, match=r"0-of-2.config.json: made with other settings: seed 0 -> 1"):
            do_part(divided(tmp_path, seed=1), shard)
    assert contents(tmp_path) == before


def test_a_file_made_with_other_settings_or_held_by_one_process_is_not_divided(tmp_path):
    of = divided(tmp_path)
    with of.whole(ALONE) as file:
        work(file, NAMES)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"rows.jsonl.config.json: made with other settings: seed 0 -> 1"):
        do_part(divided(tmp_path, seed=1), HALVES[0])
    with locked(of.file), pytest.raises(ValueError, match=r"rows.jsonl: process \d+ is writing it"):
        do_part(of, HALVES[0])
    assert contents(tmp_path) == before


def test_who_waits_is_told_for_whom_and_goes_on_when_all_is_there(tmp_path, alone, monkeypatch):
    of = divided(tmp_path / "waits")
    do_part(of, HALVES[0])
    monkeypatch.setattr("rationalyst_jax.files.parts.time.sleep", lambda seconds: do_part(of, HALVES[1]))
    told: list[str] = []
    with of.whole(HALVES[0], Waiting(told.append)) as file:
        assert work(file, NAMES) == 0
    assert told == [f"shard 0/2 waits for 1/2 to finish {of.file}"] and contents(tmp_path / "waits") == alone
    with of.whole(HALVES[1], Waiting(told.append)) as file:  # another one has put all together
        assert work(file, NAMES) == 0
    assert len(told) == 1 and contents(tmp_path / "waits") == alone


def refuse_odd(path: Path, rows: Sequence[tuple[str, Row]]) -> None:
    for place, row in rows:
        if row["id"] not in NAMES:
            raise ValueError(f"{path}, {place}: odd")


def test_rows_of_other_work_are_refused_before_a_part_begins_wherever_they_are(tmp_path):
    of = replace(divided(tmp_path), check=refuse_odd)
    do_part(of, HALVES[0])
    part = parts_of(of.file) / "0-of-2.jsonl"
    good = part.read_bytes()
    append_rows(part, [{"id": "odd"}])
    before = contents(tmp_path)
    for shard in HALVES:
        with pytest.raises(ValueError, match=r"rows\.jsonl\.parts, .*0-of-2\.jsonl:5: odd"):
            do_part(of, shard)
    assert contents(tmp_path) == before
    part.write_bytes(good)
    do_part(of, HALVES[1])
    assert put_together(of, HALVES[1]) == 0
    append_rows(of.file, [{"id": "odd"}])
    for work_on in (lambda: do_part(of, HALVES[1]), lambda: put_together(of, ALONE)):
        with pytest.raises(ValueError, match=r"rows\.jsonl, .*rows\.jsonl:8: odd"):
            work_on()


def test_a_row_that_is_now_another_shards_counts_until_its_owner_has_made_it(tmp_path):
    old = divided(tmp_path)
    do_part(old, HALVES[1])
    of = divided(tmp_path, ["new 0", "new 1", *NAMES])
    do_part(of, HALVES[1])  # still has q2, q3 and q6, which are the other one's now
    with of.part(HALVES[0]) as (path, numbers):
        assert [of.names[number] for number in numbers] == ["new 0", "new 1", "q2", "q3", "q6"]
        own = ("new 0", "new 1", "q3", "q6")
        write_rows(path, [{"id": name, "text": "its owner's"} for name in own])
    assert put_together(of, HALVES[0]) == 0
    rows = {row["id"]: row["text"] for _, row in read_rows(of.file)}
    assert list(rows) == [*of.names]
    assert {name for name, text in rows.items() if text == "its owner's"} == {*own}


def test_a_shard_without_names_leaves_nothing_while_others_are_not_done(tmp_path, alone):
    of = divided(tmp_path / "none")
    for begun in (False, True):
        if begun:
            do_part(of, HostShard(0, 5))
        before = contents(tmp_path / "none")
        assert do_part(of, HostShard(4, 5)) == []
        with pytest.raises(OthersAtWork, match=r"shard 4/5 has nothing to do: others make .*rows\.jsonl"):
            put_together(of, HostShard(4, 5))
        assert contents(tmp_path / "none") == before and parts_of(of.file).exists() == begun
    for number in range(1, 4):
        do_part(of, HostShard(number, 5))
    assert put_together(of, HostShard(3, 5)) == 0 and contents(tmp_path / "none") == alone


def test_who_waits_ends_when_nobody_is_at_work_for_ten_minutes(tmp_path, alone, monkeypatch):
    of = divided(tmp_path / "waits")
    do_part(of, HALVES[0])
    minutes: list[str] = []
    begun: list[Any] = []
    waiting = Waiting(lambda text: None)

    def one_minute(seconds: float) -> None:
        minutes.append("a minute")
        if len(minutes) == 5:
            do_part(of, HALVES[1], most=1)  # a sign of life
        if len(minutes) == 20:  # no part grows, but one is held
            begun.append(of.part(HALVES[1]))
            begun[0].__enter__()
        if len(minutes) in (50, 101):
            begun[-1].__exit__(None, None, None)

    monkeypatch.setattr("rationalyst_jax.files.parts.time.sleep", one_minute)
    monkeypatch.setattr("rationalyst_jax.files.parts.time.monotonic", lambda: 60.0 * len(minutes))
    stalled = "shard 0/2 has waited for 1/2, and nobody is at work there: start it; the same command goes on"
    for after in (16, 60):  # more than ten minutes after the 5th, and after the 49th
        with pytest.raises(Interrupted, match=stalled), of.whole(HALVES[0], waiting):
            pass
        assert len(minutes) == after
    earlier = divided(tmp_path / "waits" / "earlier")
    with earlier.part(HALVES[1]), pytest.raises(Interrupted), of.whole(HALVES[0], waiting):
        pass
    assert len(minutes) == 71  # nothing is known of the file that it is at work on
    waiting = Waiting(lambda text: None, tmp_path)
    begun.append(earlier.part(HALVES[1]))
    begun[1].__enter__()
    with pytest.raises(Interrupted), of.whole(HALVES[0], waiting):
        pass
    assert len(minutes) == 111
    shutil.rmtree(tmp_path / "waits" / "earlier")
    do_part(of, HALVES[1])
    assert put_together(of, HALVES[0]) == 0 and contents(tmp_path / "waits") == alone


# ---- Commands ----

COMMANDS = {
    "reason": "reason --config random.yaml --questions questions.jsonl --agent model --reason.block 2 "
    "--reason.max_steps 2 --reason.max_step_tokens 8 --out {}/x.jsonl",
    "choose": "choose --task arc --questions choices.jsonl --model model --choose.block 2 --out {}/x.jsonl",
    "filter": "filter --triples several.parquet --model model --prompts world --filter.block 2 "
    "--filter.row_length 256 --out {}/x.parquet",
    "mine": "mine --documents documents.jsonl --model model --prompts world --annotate.block 2 "
    "--annotate.method insert --annotate.prompt rationale --annotate.max_rationale_tokens 4 --out {}",
    "locate": "locate --solutions few.jsonl --scorer model --rationalyst model --prompts world "
    "--locate.block 2 --locate.max_rationale_tokens 4 --out {}/x.jsonl",
}

# Who needs all rationales waits for what the other one writes.
GUIDED = f"{COMMANDS['choose']} --rationalyst model --prompts world --choose.max_rationale_tokens 4"
WAITING = {"locate": COMMANDS["locate"], "choose, guided": GUIDED}


@pytest.fixture(scope="module")
def inputs(files: Path) -> Path:
    """The files of the command tests, and some with several documents or with choices."""
    triples = [triple(f"d{i}", number, 1.0) for i in range(3) for number in range(2)]
    write_triples(files / "several.parquet", triples, Provenance("annotator", "world-1", {}))
    write_rows(files / "choices.jsonl", [arc_row(i) for i in range(3)])
    solutions = (files / "solutions.jsonl").read_text().splitlines(keepends=True)
    (files / "few.jsonl").write_text("".join(solutions[:4]))
    return files


def arc_row(number: int) -> dict[str, Any]:
    choices = {"text": ["blue", "red", "old", "cold"], "label": ["A", "B", "C", "D"]}
    return {"id": f"q{number}", "question": f"What is {number}?", "choices": choices, "answerKey": "A"}


def without_seconds(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: re.sub(rb'"seconds": [\d.]+', b"", found) for name, found in files.items()}


@pytest.mark.parametrize("name", [*COMMANDS, "choose, guided"])
def test_two_shards_of_a_command_make_the_files_of_one_process(name, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    command = (COMMANDS | WAITING)[name]
    assert rationalyst(command.format(tmp_path / "alone")) == 0
    other = f"{command.format(tmp_path / 'two')} --shard 1/2"
    monkeypatch.setattr("rationalyst_jax.files.parts.time.sleep", lambda seconds: rationalyst(other))
    capsys.readouterr()
    assert rationalyst(f"{command.format(tmp_path / 'two')} --shard 0/2") == 0
    if name in WAITING:
        assert "shard 0/2 waits for 1/2 to finish" in capsys.readouterr().out
    else:
        assert "shard 0/2 is done, 1/2 not yet" in capsys.readouterr().out
        assert rationalyst(other) == 0
    assert without_seconds(contents(tmp_path / "two")) == without_seconds(contents(tmp_path / "alone"))


FOREIGN = {"mine": "annotations.jsonl", "reason": "x.jsonl", "locate": "x.jsonl"}


@pytest.mark.parametrize("name", FOREIGN)
def test_rows_of_another_run_are_refused_by_every_shard_as_by_one_process(
    name, inputs, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(inputs)
    command = COMMANDS[name].format(tmp_path)
    monkeypatch.setattr("rationalyst_jax.files.parts._SECONDS_WITHOUT_SIGN", -1)
    assert rationalyst(f"{command} --shard 0/2") == (75 if name == "locate" else 0)
    file = tmp_path / FOREIGN[name]
    [part] = parts_of(file).glob("0-of-2.jsonl")
    record = part.with_suffix(".config.json").read_text()
    for folder in tmp_path.glob("*.parts"):
        shutil.rmtree(folder)
    write_rows(file, [{"id": "stranger", "asked": "something else"}])
    file.with_name("annotations.config.json" if name == "mine" else "x.jsonl.config.json").write_text(record)
    before = contents(tmp_path)
    monkeypatch.setattr("rationalyst_jax.pipeline.models.Models.roles", None)  # no model is opened
    errors = set()
    for shard in ("none", "0/2", "1/2"):
        capsys.readouterr()
        assert rationalyst(f"{command} --shard {shard}") == 1
        errors.add(capsys.readouterr().err)
        assert contents(tmp_path) == before
    [error] = errors
    assert re.search("which is no document of this run|holds (traces of )?other [a-z]+ alone", error)


def test_documents_put_in_front_of_parts_that_are_begun_are_annotated_too(
    inputs, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(inputs)
    documents = [{"id": f"d{number}", "text": f"A text, of which {number} is a part."} for number in range(6)]
    file = tmp_path / "documents.jsonl"
    command = COMMANDS["mine"].replace("documents.jsonl", str(file)).format(tmp_path / "out")
    write_rows(file, documents[2:])
    assert rationalyst(f"{command} --shard 0/2") == 0
    write_rows(file, documents)
    [part] = tmp_path.rglob("0-of-2.jsonl")
    made = part.read_text().splitlines()
    assert [json.loads(line)["id"] for line in made] == ["d2", "d3"]
    for shard in ("0/2", "1/2"):
        assert rationalyst(f"{command} --shard {shard}") == 0, capsys.readouterr().err
    lines = (tmp_path / "out" / "annotations.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [document["id"] for document in documents]
    assert not [*tmp_path.rglob("*.parts")]


@pytest.mark.parametrize("name", ["choose", "filter"])
def test_a_shard_that_comes_after_the_end_says_so_and_leaves_nothing(
    name, inputs, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(inputs)
    command = COMMANDS[name].format(tmp_path)
    [out] = re.findall(r"--out (\S+)", command)
    for shard in ("0/2", "1/2"):
        assert rationalyst(f"{command} --shard {shard}") == 0
    made = contents(tmp_path)
    for shard in ("0/2", "1/2", "4/5"):
        capsys.readouterr()
        assert rationalyst(f"{command} --shard {shard}") == 0
        told = capsys.readouterr().out
        assert told.endswith(f"rationalyst {name}: shard {shard} has nothing to do: {out} is there already\n")
        assert contents(tmp_path) == made and not [*tmp_path.rglob("*.parts")]
    other = f"{command} --{name}.row_length 200"  # which is other work
    assert rationalyst(f"{other} --shard 4/5") == 0
    assert f"shard 4/5 has nothing to do: others make {out}\n" in capsys.readouterr().out
    assert contents(tmp_path) == made and not [*tmp_path.rglob("*.parts")]
    assert rationalyst(f"{other} --shard 0/2") == 0
    assert f"shard 0/2 is done, 1/2 not yet: the last one to finish makes {out}\n" in capsys.readouterr().out


def test_a_shard_that_waits_for_nobody_ends_with_75_and_goes_on_later(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    command = COMMANDS["locate"].format(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("rationalyst_jax.files.parts._SECONDS_WITHOUT_SIGN", -1)
        assert rationalyst(f"{command} --shard 0/2") == 75
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "shard 0/2 has waited for 1/2, and nobody is at work there" in error
    monkeypatch.setattr(
        "rationalyst_jax.files.parts.time.sleep", lambda seconds: rationalyst(f"{command} --shard 1/2")
    )
    assert rationalyst(f"{command} --shard 0/2") == 0
    assert (tmp_path / "x.jsonl").exists() and not [*tmp_path.rglob("*.parts")]


def test_all_commands_say_the_same_of_the_option():
    said = set()
    for name in (*COMMANDS, "benchmark"):
        parser = parser_of(name, importlib.import_module(f"rationalyst_jax.cli.{name}"))
        [option] = [action for action in parser._actions if "--shard" in action.option_strings]
        said.add(" ".join(str(option.help).removesuffix(" Imports are not divided.").split()))
    [help] = said
    assert help.startswith("Which part of the work is this process's") and "tpu" in help


@pytest.mark.parametrize("name", [*COMMANDS, "benchmark"])
def test_a_bad_shard_is_a_usage_error_in_one_line(name, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    command = COMMANDS.get(name, "benchmark --config paper --run_dir {}").format(tmp_path / "out")
    assert rationalyst(f"{command} --shard 3/2") == 2
    error = f"rationalyst {name}: --shard: 3/2: of N shards the first is 0/N and the last (N-1)/N\n"
    assert capsys.readouterr().err == error and not (tmp_path / "out").exists()


def test_another_number_of_shards_does_not_go_on(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    command = COMMANDS["reason"].format(tmp_path)
    assert rationalyst(f"{command} --shard 0/2") == 0
    before = contents(tmp_path)
    capsys.readouterr()
    for other in ("--shard 0/3", "--shard none"):
        assert rationalyst(f"{command} {other}") == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "x.jsonl.parts: was begun by 2 shards" in error
    assert rationalyst(f"{command} --shard 1/2 --reason.temperature 0.5") == 1
    error = capsys.readouterr().err
    assert "0-of-2.config.json: made with other settings: temperature 0.7 -> 0.5" in error
    assert contents(tmp_path) == before


# ---- Real processes, as srun starts them ----

STAGES = {
    "reason": "reason --task gsm8k --questions {root}/questions.jsonl --agent world --rationalyst world "
    "--prompts world --reason.strategy implicit --reason.block 4 --reason.max_steps 4 --out {out}/x.jsonl",
    "mine": "mine --documents {root}/documents.jsonl --model world --prompts world --annotate.block 4 "
    "--out {out}",
}


def begin(command: str, shard: int | None = None) -> subprocess.Popen[bytes]:
    """A command in a process of its own, which for a shard is one of two tasks of a Slurm step."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    if shard is not None:
        environ |= SLURM | {"SLURM_PROCID": str(shard)}
    program = [sys.executable, "-m", "rationalyst_jax.cli.main", *shlex.split(command)]
    return subprocess.Popen(program, env=environ, stdout=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_two_processes_of_which_one_is_killed_and_resumed_make_the_files_of_one(name, tmp_path):
    write_rows(tmp_path / "questions.jsonl", questions(0, 24, "test"))
    assert rationalyst(f"world documents --count 24 --out {tmp_path / 'documents.jsonl'}") == 0

    def command(out: str) -> str:
        return STAGES[name].format(root=tmp_path, out=tmp_path / out)

    assert begin(command("alone")).wait() == 0
    shards = [begin(command("two"), number) for number in range(2)]
    deadline = time.monotonic() + 600
    while not any(path.stat().st_size for path in (tmp_path / "two").rglob("1-of-2.jsonl")):
        assert shards[1].poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    shards[1].kill()
    assert shards[1].wait() == -signal.SIGKILL
    assert shards[0].wait() == 0
    assert [*(tmp_path / "two").rglob("0-of-2.jsonl")]  # it has not put together what is not there
    assert begin(command("two"), 1).wait() == 0
    made, expected = (without_seconds(contents(tmp_path / folder)) for folder in ("two", "alone"))
    for files in (made, expected):
        files.pop("annotations.usage.jsonl", None)  # what was lost by the kill is in it too
    assert made == expected


@pytest.mark.slow
def test_two_processes_that_end_at_once_make_one_file(tmp_path):
    write_rows(tmp_path / "questions.jsonl", questions(0, 8, "test"))

    def command(out: str) -> str:
        return STAGES["reason"].format(root=tmp_path, out=tmp_path / out)

    assert begin(command("alone")).wait() == 0
    shards = [begin(command("two"), number) for number in range(2)]
    assert [shard.wait() for shard in shards] == [0, 0]
    assert without_seconds(contents(tmp_path / "two")) == without_seconds(contents(tmp_path / "alone"))
