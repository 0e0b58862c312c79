"""Benchmarks and rationales as data sets of TFDS: prepared whole or not at all, read back equal, no
TensorFlow."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import grain
import pytest
import tensorflow_datasets as tfds
from cli_files import rationalyst
from rich.console import Console
from task_rows import original_rows
from tensorflow_datasets.core.read_only_builder import builder_from_files

from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.prepared import prepared_rows, prepared_split, read_prepared, wanted
from rationalyst_jax.files.preparing import prepare
from rationalyst_jax.files.rows import read_table, write_rows
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.pipeline.config import ExperimentConfig
from rationalyst_jax.pipeline.data import prepare_questions
from rationalyst_jax.pipeline.experiment import Experiment
from rationalyst_jax.pipeline.models import Models
from rationalyst_jax.tasks.benchmarks import TASKS, task_named
from rationalyst_jax.tasks.catalog import CATALOG
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.sources import questions_digest, read_questions
from rationalyst_jax.tasks.splits import given_split, sorted_into_splits, split_called
from rationalyst_jax.tasks.task import Task
from rationalyst_jax.tasks.tfds_builders import builder_of, data_set, question_row, set_name
from rationalyst_jax.train.rationales import kept_rationales

REAL = {
    "gsm8k": ("gsm8k/train.jsonl", "gsm8k/test.jsonl"),
    "math": ("math/train.jsonl", "test=math/math500.jsonl"),
    "commonsense_qa": ("ecqa/cqa_dev.jsonl",),
    "ecqa": ("ecqa/ecqa_train.jsonl",),
    "hellaswag": ("hellaswag/val_1000.jsonl",),
    "proofwriter": tuple(f"proofwriter/logic_llm_{split}.json" for split in ("train", "dev", "test")),
    "arc": ("arc/train.jsonl", "arc/test.jsonl"),
    "mmlu_pro": ("mmlu_pro/test.parquet", "mmlu_pro/validation.parquet"),
}
SOURCES = [*TASKS, "rationales"]


def evaluated(task: Task) -> str:
    return split_called(task.split)


def write_task(folder: Path, task: str, count: int = 7) -> dict[str, Path]:
    """Files of a task's rows by their splits."""
    splits = ("train", evaluated(TASKS[task]))
    files = {split: folder / f"{task}_{split}.jsonl" for split in splits}
    for split, path in files.items():
        write_rows(path, original_rows(task, split, count))
    return files


def write_rationales(path: Path, count: int = 7) -> Path:
    """Every third is not kept."""
    rows = (
        {"document_id": f"d{i // 2}", "preceding": f"{i} é\n", "rationale": f"r{i}", "kept": i % 3 > 0}
        for i in range(count)
    )
    write_rows(path, rows)
    return path


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of rows of every task, and of rationales."""
    folder = tmp_path_factory.mktemp("originals")
    for task in TASKS:
        write_task(folder, task)
    write_rationales(folder / "rationales_train.jsonl", 14)
    return folder


@pytest.fixture(scope="module")
def prepared(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of `originals`, prepared by the command in one folder."""
    out = tmp_path_factory.mktemp("prepared")
    for task in SOURCES:
        files = " ".join(str(path) for path in sorted(originals.glob(f"{task}_*.jsonl")))
        assert rationalyst(f"data --task {task} --from {files} --out {out}") == 0
    return out


# ---- What is prepared comes back ----


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_read_from_its_prepared_set_as_from_its_files(name, originals, prepared):
    task = TASKS[name]
    for split in ("train", evaluated(task)):
        questions = task.read(originals / f"{name}_{split}.jsonl")
        assert len(questions) == 7
        assert read_questions(task, f"tfds:{set_name(task)}:{split}@{prepared}") == questions
        # and by TFDS alone
        builder: Any = tfds.builder_from_directory(str(prepared / set_name(task) / "1.0.0"))
        rows = list(builder.as_data_source(split))
        assert [row["id"].decode() for row in rows] == [question.id for question in questions]
        assert [row["text"].decode() for row in rows] == [question.text for question in questions]
        assert [len(row["choices"]) for row in rows] == [len(question.choices) for question in questions]


@pytest.mark.parametrize("name", TASKS)
def test_the_split_that_is_evaluated_is_read_where_none_is_said(name, prepared, monkeypatch):
    task = TASKS[name]
    said = read_questions(task, f"tfds:{set_name(task)}:{evaluated(task)}@{prepared}")
    assert read_questions(task, f"tfds:{set_name(task)}@{prepared}") == said
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert read_questions(task, f"tfds:{set_name(task)}") == said
    train = read_questions(task, f"tfds:{set_name(task)}:train")
    assert read_questions(task, f"tfds:{set_name(task)}", "train") == train != said


def test_math500_learns_from_the_training_split_of_math_and_is_not_evaluated_on_its_test_split(prepared):
    source = f"tfds:rationalyst_math@{prepared}"
    train = read_questions(TASKS["math"], source, "train")
    assert read_questions(TASKS["math500"], source, "train") == train
    train, test = (questions_digest(TASKS["math"], source, split) for split in ("train", None))
    assert questions_digest(TASKS["math500"], source, "train") == train != test
    for reads in (read_questions, questions_digest):
        with pytest.raises(ValueError, match=r"no questions of math500, which are in rationalyst_math500$"):
            reads(TASKS["math500"], source)


def test_questions_with_every_field_and_with_none_come_back_equal(tmp_path):
    task = TASKS["gsm8k"]
    full = Question("i", "t\n\t", "g", ("", "ß", "a\nb"), "s", 2**40, "w", "train")
    questions = [full, Question("2", "t"), Question("3", "t", choices=("one",))]
    prepare(data_set(task), {"train": [*map(question_row, questions)]}, tmp_path)
    assert read_questions(task, f"tfds:{set_name(task)}:train@{tmp_path}") == questions


@pytest.mark.parametrize("name", SOURCES)
def test_grain_reads_a_set_shuffled_and_goes_on_from_a_saved_state(name, prepared):
    split = prepared_split(wanted(f"tfds:rationalyst_{name}@{prepared}"), "train")
    rows = prepared_rows(split)

    def batches() -> Any:
        return iter(rows.seed(5).shuffle().repeat(2).batch(3, batch_fn=list).to_iter_dataset())

    whole = list(batches())
    assert sorted(json.dumps(row) for batch in whole for row in batch) == sorted(
        json.dumps(row) for _, row in [*read_prepared(split)] * 2
    )
    assert [row for batch in whole for row in batch] != [row for _, row in [*read_prepared(split)] * 2]
    begun = batches()
    taken = [next(begun) for _ in range(2)]
    state = json.loads(json.dumps(begun.get_state()))
    again = batches()
    again.set_state(state)
    assert taken + list(again) == whole


def test_grain_threads_keep_the_order(prepared):
    rows = prepared_rows(prepared_split(wanted(f"tfds:rationalyst_gsm8k@{prepared}"), "train"))
    read = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
    assert list(rows.to_iter_dataset(read)) == [rows[i] for i in range(len(rows))]


@pytest.mark.parametrize(("name", "count"), [(name, 60) for name in REAL])
def test_the_first_real_rows_come_back_equal(name, count, shared, tmp_path):
    task = TASKS[name]
    questions = []
    for file in REAL[name]:
        path = shared / file.rpartition("=")[2]
        placed = task.placed(islice(read_table(path), count), path.stem)
        questions += [question for _, question in placed]
    prepare(data_set(task), {"test": [*map(question_row, questions)]}, tmp_path)
    assert read_questions(task, f"tfds:{set_name(task)}:test@{tmp_path}") == questions


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_all_real_rows_come_back_equal(name, shared, tmp_path):
    task = TASKS[name]
    named = [file.replace("=", f"={shared}/") if "=" in file else f"{shared}/{file}" for file in REAL[name]]
    splits = sorted_into_splits(task, named)
    summary = prepare_questions(task, named, tmp_path)
    assert summary.splits == {split: len(questions) for split, questions in splits.items()}
    for split, questions in splits.items():
        assert read_questions(task, f"tfds:{set_name(task)}:{split}@{tmp_path}") == questions


# ---- Without TensorFlow, without the network ----


def test_neither_tensorflow_nor_the_network_is_asked(originals, tmp_path):
    # A TensorFlow that can be found, so that not importing it means something.
    (tmp_path / "path" / "tensorflow").mkdir(parents=True)
    (tmp_path / "path" / "tensorflow" / "__init__.py").write_text("raise SystemExit('imported TensorFlow')\n")
    program = f"""
import socket, sys
def refused(*arguments, **options):
    raise SystemExit("asked the network")
socket.socket.connect = socket.getaddrinfo = refused
from rationalyst_jax.cli.main import main
from rationalyst_jax.tasks.benchmarks import task_named
from rationalyst_jax.tasks.sources import read_questions
out = {str(tmp_path / "out")!r}
assert main(["data", "--task", "gsm8k", "--from", {str(originals / "gsm8k_test.jsonl")!r}, "--out", out]) == 0
assert len(read_questions(task_named("gsm8k"), f"tfds:rationalyst_gsm8k@{{out}}")) == 7
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
"""
    paths = [str(tmp_path / "path"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_split_that_tfds_would_sort_by_tensorflow_is_refused(originals, tmp_path, monkeypatch, capsys):
    from tensorflow_datasets.core import shuffle

    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 100)
    assert rationalyst(f"data --task gsm8k --from {originals}/gsm8k_test.jsonl --out {tmp_path}") == 1
    error = capsys.readouterr().err
    assert "rationalyst_gsm8k: a split of more than 1,000 MiB needs TensorFlow" in error
    assert error.count("\n") == 1 and not (tmp_path / "rationalyst_gsm8k").exists()


# ---- Whole or not at all ----

# Becomes the command, and stays at the given function once it has been called so many times.
HOLDING = """
import importlib, os, sys, time
from rationalyst_jax.cli.main import main
module, name, calls, *arguments = sys.argv[1:]
*path, attribute = name.split(".")
holder = importlib.import_module(module)
for part in path:
    holder = getattr(holder, part)
called = getattr(holder, attribute)
left = int(calls)
def hold(*arguments, **options):
    global left
    left -= 1
    if left < 0:
        print("held", flush=True)
        time.sleep(3600)
    return called(*arguments, **options)
setattr(holder, attribute, hold)
main(arguments)
"""


@pytest.mark.parametrize(
    "held",
    [
        ("tensorflow_datasets.core.shuffle", "Shuffler.add", "3"),
        ("rationalyst_jax.files.preparing", "os.replace", "1"),  # 0: of the settings
    ],
    ids=["amid the rows", "before the last step"],
)
def test_a_killed_run_leaves_nothing_that_looks_finished(held, originals, tmp_path, capsys):
    command = f"data --task gsm8k --from {originals}/gsm8k_test.jsonl --out {tmp_path}/out"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, *held, *command.split()], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert "held" in process.stdout.read(5)
    try:
        assert rationalyst(command) == 1  # while that one is at work
        assert f"rationalyst_gsm8k: process {process.pid} is writing it" in capsys.readouterr().err
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (tmp_path / "out" / "rationalyst_gsm8k.unfinished").is_dir()
    with pytest.raises(ValueError, match="no prepared set in"):
        read_questions(TASKS["gsm8k"], f"tfds:rationalyst_gsm8k@{tmp_path}/out")
    with pytest.raises(tfds.core.DatasetNotFoundError):
        builder_from_files("rationalyst_gsm8k", data_dir=tmp_path / "out")
    assert rationalyst(command) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "rationalyst_gsm8k",
        "rationalyst_gsm8k.config.json",
    }
    assert len(read_questions(TASKS["gsm8k"], f"tfds:rationalyst_gsm8k@{tmp_path}/out")) == 7


def test_a_row_that_cannot_be_stored_leaves_nothing(tmp_path):
    task = TASKS["gsm8k"]
    rows = [question_row(Question("1", "t")), question_row(Question("2", "t")) | {"level": "high"}]
    with pytest.raises(ValueError, match="high"):
        prepare(data_set(task), {"train": rows}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{set_name(task)}.config.json"}


def test_an_interruption_leaves_nothing(originals, tmp_path):
    def interrupt(done: int, total: int, tokens: int) -> None:
        raise KeyboardInterrupt

    files = [str(originals / "gsm8k_test.jsonl")]
    with pytest.raises(KeyboardInterrupt):
        prepare_questions(TASKS["gsm8k"], files, tmp_path, interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"rationalyst_gsm8k.config.json"}


def test_a_set_that_another_process_writes_is_left_alone(originals, tmp_path, capsys):
    with locked(tmp_path / "rationalyst_gsm8k"):
        assert rationalyst(f"data --task gsm8k --from {originals}/gsm8k_test.jsonl --out {tmp_path}") == 1
    error = capsys.readouterr().err
    assert f"rationalyst_gsm8k: process {os.getpid()} is writing it" in error and error.count("\n") == 1


def test_the_same_rows_again_change_nothing_and_other_rows_are_refused(originals, tmp_path, capsys):
    command = f"data --task gsm8k --from {{}}={originals}/gsm8k_test.jsonl --out {tmp_path}"
    assert rationalyst(command.format("test")) == 0
    before = questions_digest(TASKS["gsm8k"], f"tfds:rationalyst_gsm8k@{tmp_path}")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "rationalyst_gsm8k").rglob("*")}
    assert rationalyst(command.format("test")) == 0
    assert rationalyst(command.format("train")) == 1
    error = capsys.readouterr().err
    assert "made with other settings" in error and "rationalyst_gsm8k or write elsewhere" in error
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert questions_digest(TASKS["gsm8k"], f"tfds:rationalyst_gsm8k@{tmp_path}") == before


def test_what_is_prepared_twice_has_the_same_bytes(originals, prepared, tmp_path):
    files = [str(originals / f"gsm8k_{split}.jsonl") for split in ("test", "train")]
    prepare_questions(TASKS["gsm8k"], files, tmp_path)
    source = "tfds:rationalyst_gsm8k"
    digests = [questions_digest(TASKS["gsm8k"], f"{source}@{folder}") for folder in (prepared, tmp_path)]
    assert digests[0] == digests[1]
    train = questions_digest(TASKS["gsm8k"], f"{source}:train@{prepared}")
    assert train != digests[0] == questions_digest(TASKS["gsm8k"], f"{source}:test@{prepared}")


def test_the_command_counts_the_rows_of_each_split(originals, tmp_path, capsys):
    files = f"{originals}/gsm8k_test.jsonl {originals}/gsm8k_train.jsonl"
    assert rationalyst(f"data --task gsm8k --from {files} --out {tmp_path}") == 0
    printed = capsys.readouterr()
    assert "rows: 14" in printed.out and printed.err == ""
    for split in ("test", "train"):
        assert [line.split("│")[2].strip() for line in printed.out.splitlines() if f"│ {split} " in line] == [
            "7"
        ]


def test_a_builder_is_one_of_tfds(originals, tmp_path):
    task = TASKS["gsm8k"]
    questions = task.read(originals / "gsm8k_test.jsonl")
    assert issubclass(builder_of(task), tfds.core.GeneratorBasedBuilder)
    rows = {"test": [*map(question_row, questions)]}
    builder = builder_of(task)(splits=rows, data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    assert builder.info.disable_shuffling and builder.info.splits["test"].num_examples == 7
    assert read_questions(task, f"tfds:{set_name(task)}@{tmp_path}") == questions


# ---- Splits ----


def splits_of(task: str, *files: str) -> dict[str, list[str]]:
    found = sorted_into_splits(TASKS[task], files)
    return {split: [question.id for question in questions] for split, questions in found.items()}


def test_a_files_name_says_its_split(tmp_path):
    for stem in ("train", "my_dev", "val_1000", "test-2"):
        write_rows(tmp_path / f"{stem}.jsonl", [{"question": "q", "answer": "#### 1"}])
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    assert splits_of("gsm8k", *files) == {
        "validation": ["my_dev-1", "val_1000-1"],
        "test": ["test-2-1"],
        "train": ["train-1"],
    }


@pytest.mark.parametrize("stem", ["rows", "contest", "train_and_test"])
def test_a_file_that_says_no_split_needs_one(stem, tmp_path, capsys):
    path = tmp_path / f"{stem}.jsonl"
    write_rows(path, [{"question": "q", "answer": "#### 1"}])
    assert rationalyst(f"data --task gsm8k --from {path} --out {tmp_path}/out") == 1
    error = capsys.readouterr().err
    assert f"{path}:1: neither the row nor the file's name says which split: write SPLIT={path}" in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()
    assert splits_of("gsm8k", f"dev={path}") == {"validation": [f"{stem}-1"]}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A file called train with a row of the test split."""
    path = tmp_path / "train.jsonl"
    write_rows(path, [*original_rows("ecqa", "train", 2), *original_rows("ecqa", "test", 1)])
    return path


def test_a_file_is_found_by_its_own_path_though_that_has_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("seed=0").mkdir()
    write_rows(Path("seed=0/test.jsonl"), original_rows("gsm8k", "test", 2))
    assert given_split("seed=0/test.jsonl") == (None, Path("seed=0/test.jsonl"))
    assert given_split("dev=seed=0/test.jsonl") == ("validation", Path("seed=0/test.jsonl"))
    assert given_split("train=gone.jsonl") == ("train", Path("gone.jsonl"))
    assert [*sorted_into_splits(TASKS["gsm8k"], ["seed=0/test.jsonl"])] == ["test"]


def test_a_row_that_says_its_split_goes_there(mixed):
    assert splits_of("ecqa", str(mixed)) == {"train": ["arc 0", "arc 1"], "test": ["arc 2000"]}


def test_a_row_of_another_split_than_is_said_is_named(mixed):
    with pytest.raises(ValueError, match=r"train.jsonl:3: the row says .* split 'test', not 'train'"):
        splits_of("ecqa", f"train={mixed}")


def test_the_real_training_file_of_ecqa_holds_rows_of_the_test_split(shared):
    path = shared / "ecqa" / "ecqa_train.jsonl"
    assert {split: len(ids) for split, ids in splits_of("ecqa", str(path)).items()} == {
        "train": 7080,
        "test": 32,
    }
    with pytest.raises(ValueError, match=r"ecqa_train.jsonl:\d+: the row says .* split 'test', not 'train'"):
        splits_of("ecqa", f"train={path}")


def test_an_id_is_in_a_split_once(tmp_path):
    for name in ("a", "b"):
        write_rows(tmp_path / f"{name}.jsonl", [{"id": 7, "question": "q", "answer": "#### 1"}])
    with pytest.raises(ValueError, match=r"b.jsonl:1: id '7' is twice in split 'test'"):
        splits_of("gsm8k", *(f"test={tmp_path / name}.jsonl" for name in "ab"))
    assert len(splits_of("gsm8k", f"test={tmp_path}/a.jsonl", f"train={tmp_path}/b.jsonl")) == 2


def test_a_name_that_tfds_cannot_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'all' is no name of a split"):
        prepare(data_set(TASKS["gsm8k"]), {"all": [question_row(Question("1", "t"))]}, tmp_path)


# ---- Sets of TFDS's own catalog ----


def catalog_builder(name: str) -> Any:
    """TFDS's own code of a set, the parts of its data, and how our rows look there."""
    match name:
        case "gsm8k":
            from tensorflow_datasets.text.gsm8k.gsm8k import Gsm8k as builder
        case "hellaswag":
            from tensorflow_datasets.text.hellaswag import Hellaswag as builder
        case _:
            from tensorflow_datasets.datasets.ai2_arc.ai2_arc_dataset_builder import Builder as builder
    return builder


def write_catalog(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict]]:
    """Prepares a catalog's set by TFDS's own code from rows of ours in place of its downloads."""
    task = "arc" if name == "ai2_arc" else name
    rows = {split: original_rows(task, split, 9) for split in ("train", "validation", "test")}
    downloads: Any
    if name == "gsm8k":
        downloads = {part: folder / f"{part}.jsonl" for part in ("train", "test")}
        downloads |= {f"{part}_socratic": path for part, path in downloads.items()}
        files = {part: downloads[part] for part in ("train", "test")}
        for row in (row for of_split in rows.values() for row in of_split):
            row.pop("id", None)
    elif name == "hellaswag":
        downloads = files = {part: folder / f"{part}.jsonl" for part in ("train", "validation", "test")}
        for row in (row for of_split in rows.values() for row in of_split):
            row["split_type"] = "indomain" if row["ind"] % 4 < 2 else "zeroshot"  # none of its parts is empty
    else:
        downloads = folder
        inner = folder / "ARC-V1-Feb2018-2" / "ARC-Challenge"
        stems = {"train": "Train", "validation": "Dev", "test": "Test"}
        files = {part: inner / f"ARC-Challenge-{stem}.jsonl" for part, stem in stems.items()}
    for split, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, [nested(row) for row in rows[split]] if name == "ai2_arc" else rows[split])
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda self, urls: downloads)
    tfds.disable_progress_bar()
    options = {"config": "ARC-Challenge"} if name == "ai2_arc" else {}
    builder = catalog_builder(name)(data_dir=folder / "tfds", file_format="array_record", **options)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return rows


def nested(row: dict[str, Any]) -> dict[str, Any]:
    """A row of ARC as the original archive has it."""
    pairs = zip(row["choices"]["text"], row["choices"]["label"], strict=True)
    listed = [{"text": text, "label": label} for text, label in pairs]
    return {"id": row["id"], "question": {"stem": row["question"], "choices": listed}} | {
        "answerKey": row["answerKey"]
    }


@pytest.mark.parametrize("name", ["gsm8k", "hellaswag", "ai2_arc"])
def test_a_set_of_the_catalog_asks_what_the_original_rows_ask(name, tmp_path, monkeypatch):
    task = TASKS["arc" if name == "ai2_arc" else name]
    rows = write_catalog(tmp_path, name, monkeypatch)
    for split in ("train", evaluated(task)):
        found = read_questions(task, f"tfds:{name}:{split}@{tmp_path}/tfds")
        assert len({question.id for question in found}) == 9
        expected = [
            question for _, question in task.placed(((f"x:{i}", r) for i, r in enumerate(rows[split])), "x")
        ]
        known = ("text", "gold", "choices", "solution", "subject")
        assert sorted([str(getattr(q, key)) for key in known] for q in found) == sorted(
            [str(getattr(q, key)) for key in known] for q in expected
        )
        if name == "ai2_arc":
            assert {q.id for q in found} == {q.id for q in expected}
            assert read_questions(task, f"tfds:ai2_arc/ARC-Challenge:{split}@{tmp_path}/tfds") == found


def test_the_catalogs_context_of_hellaswag_is_divided_as_the_original_is(shared):
    for _, row in read_table(shared / "hellaswag" / "val_1000.jsonl"):
        of_catalog = CATALOG["hellaswag"].original(row | {"context": row["ctx"]})
        assert (of_catalog["ctx_a"], of_catalog["ctx_b"]) == (row["ctx_a"], row["ctx_b"])


# ---- Mistakes ----


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:", r"tfds:: a prepared set is written tfds:NAME\[:SPLIT\]\[@DIR\]"),
        ("tfds:rationalyst_gsm8k:test:2@{}", r"a prepared set is written"),
        (
            "tfds:rationalyst_gsm8k@{}/none",
            r"tfds:rationalyst_gsm8k: no prepared set in .*/none/rationalyst_gsm8k",
        ),
        ("tfds:gsm8k@{}", r"tfds:gsm8k: no prepared set in .*/gsm8k"),
        (
            "tfds:rationalyst_gsm8k:dev@{}",
            r"tfds:rationalyst_gsm8k: no split 'dev' in .*: there are test, train",
        ),
        ("tfds:hellaswag@{}", r"no questions of gsm8k, which are in rationalyst_gsm8k or gsm8k"),
        ("tfds:rationalyst_rationales@{}", r"no questions of gsm8k, which are in"),
    ],
)
def test_a_source_that_is_not_there_is_named(source, message, prepared):
    with pytest.raises(ValueError, match=message):
        read_questions(TASKS["gsm8k"], source.format(prepared))
    with pytest.raises(ValueError, match=message):
        questions_digest(TASKS["gsm8k"], source.format(prepared))


def truncated(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size // 2)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "features.json").unlink(), "not a complete prepared set"),
        (lambda folder: (folder / "features.json").write_text("{"), "not a complete prepared set"),
        (lambda folder: (folder / "dataset_info.json").write_text("{"), "not a complete prepared set"),
        (lambda folder: next(folder.glob("*-test.array*")).unlink(), "not a complete prepared set"),
        (lambda folder: truncated(next(folder.glob("*-test.array*"))), "not a complete prepared set"),
        (lambda folder: replaced(folder / "dataset_info.json", '"array_record"', '"tfrecord"'), "tfrecord"),
        (lambda folder: replaced(folder / "dataset_info.json", '"array_record"', '"parquet"'), "parquet"),
        (lambda folder: replaced(folder / "features.json", '"subject"', '"object"'), "tfds:.*object|whole"),
    ],
)
def test_a_damaged_set_is_named(harm, message, prepared, tmp_path):
    shutil.copytree(prepared / "rationalyst_gsm8k", tmp_path / "rationalyst_gsm8k")
    harm(tmp_path / "rationalyst_gsm8k" / "1.0.0")
    with pytest.raises(ValueError, match=message) as error:
        read_questions(TASKS["gsm8k"], f"tfds:rationalyst_gsm8k@{tmp_path}")
    assert "\n" not in str(error.value) and "rationalyst_gsm8k" in str(error.value)


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# ---- The stages that read them ----


@pytest.fixture
def inputs(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the commands' inputs to work in, and a set of its questions."""
    monkeypatch.chdir(files)
    assert rationalyst(f"data --task gsm8k --from test=questions.jsonl --out {tmp_path}") == 0
    yield tmp_path


def test_evaluate_takes_a_prepared_set_for_a_file(inputs, capsys):
    capsys.readouterr()
    printed = []
    for source in ("questions.jsonl", f"tfds:rationalyst_gsm8k@{inputs}"):
        assert (
            rationalyst(f"evaluate --task gsm8k --questions {source} --traces guided.jsonl random.jsonl") == 0
        )
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and "guided" in printed[0]
    assert rationalyst("evaluate --task gsm8k --questions tfds:gsm8k@none --traces guided.jsonl") == 1
    assert capsys.readouterr().err == "rationalyst evaluate: tfds:gsm8k: no prepared set in none/gsm8k\n"


def test_reason_solves_the_questions_of_a_prepared_set(inputs):
    questions = f"--questions tfds:rationalyst_gsm8k@{inputs} --limit 1"
    options = f"--agent model --out {inputs}/traces.jsonl --reason.max_steps 1 --reason.max_step_tokens 4"
    assert rationalyst(f"reason --config random.yaml {questions} {options}") == 0
    assert [json.loads(line)["id"] for line in (inputs / "traces.jsonl").read_text().splitlines()] == ["q0"]


def test_an_experiment_is_bound_to_the_prepared_set_it_began_with(inputs):
    def experiment(source: str, models: Models) -> Experiment:
        config = ExperimentConfig(
            run_dir=str(inputs / "run"),
            model="world",
            prompts="world",
            documents="documents.jsonl",
            questions={"test": source},
        )
        return Experiment(config, models, Console(quiet=True))

    source = f"tfds:rationalyst_gsm8k:test@{inputs}"
    with Models(EngineConfig()) as models:
        begun = experiment(source, models)
        assert begun.make_data() == {"documents": 3, "test": 4}
        assert begun.settings()["questions"] == {"test": questions_digest(task_named("gsm8k"), source)}
        with pytest.raises(ValueError, match="no split 'dev'"):
            experiment(source.replace(":test", ":dev"), models).settings()


# ---- Rationales ----


def test_prepared_rationales_are_the_kept_ones(originals, prepared):
    rows = list(kept_rationales(f"tfds:rationalyst_rationales@{prepared}"))
    assert rows == list(kept_rationales(originals / "rationales_train.jsonl"))
    assert [row["rationale"] for row in rows] == [f"r{i}" for i in range(14) if i % 3]


def test_a_source_of_rationales_that_is_not_there_is_named(prepared, capsys):
    for source, message in (
        (f"tfds:rationalyst_rationales:pile@{prepared}", "no split 'pile'"),
        (f"tfds:rationalyst_gsm8k@{prepared}", "no rationales, which are in rationalyst_rationales"),
        ("none.parquet", "no such file of rationales"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            list(kept_rationales(source))
        assert (
            rationalyst(f"train --rationales {source} --model world --prompts world --run_dir {prepared}/run")
            == 1
        )
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_training_on_prepared_rationales_is_bit_for_bit_that_on_the_file(files, tmp_path, monkeypatch):
    monkeypatch.chdir(files)
    assert rationalyst(f"data --task rationales --from gsm8k=filtered.parquet --out {tmp_path}") == 0
    runs = []
    for name, source in (
        ("file", "filtered.parquet"),
        ("set", f"tfds:rationalyst_rationales:gsm8k@{tmp_path}"),
    ):
        run = tmp_path / name
        options = "--train.row_length 64 --train.validation_fraction 0 --train.steps 2 --train.save_every 1"
        command = f"train --rationales {source} --model model --prompts world --run_dir {run} {options}"
        assert rationalyst(command) == 0
        losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        [store] = (run / "data").iterdir()
        trees = (store / "trees.array_record").read_bytes()
        runs.append(((run / "hf" / "model.safetensors").read_bytes(), losses, trees))
        # A finished run is continued from its last state, and is finished.
        assert rationalyst(command) == 0
        assert (run / "hf" / "model.safetensors").read_bytes() == runs[-1][0]
    assert runs[0] == runs[1] and len(runs[0][1]) == 2
