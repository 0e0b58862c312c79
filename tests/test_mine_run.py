"""Mining over shards gives what the commands give, in workers that may be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_files import rationalyst
from random_encoder import save_encoder
from shard_stages import supervise_in_process
from task_rows import original_rows

from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.files.whole import read_json
from rationalyst_jax.mine.documents import read_documents
from rationalyst_jax.mine.store import read_filtered, read_provenance
from rationalyst_jax.pipeline import clusters, mine_run, mine_stages
from rationalyst_jax.pipeline.mine_config import ClusterConfig, MineRunConfig
from rationalyst_jax.pipeline.sharded import ShardedRun
from rationalyst_jax.train.rationales import kept_rationales
from rationalyst_jax.world.corpus import documents

HOW = (
    "--model world --prompts world --annotate.length_margin 80 --annotate.block 4 --engine.max_sequences 4 "
    "--engine.pages 64"
)
JUDGED = "--filter.row_length 512 --filter.rows_per_batch 1 --filter.block 4 --filter.suppress [<BOT>]"
RUN = f"mine run --documents shards {HOW} {JUDGED} --filter.keep all --filter.tau_by_source.world 0.5"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three shards: one has a malformed row, and one is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    rows = list(documents(0, 5))
    write_rows(tmp_path / "shards" / "a.jsonl", rows[:3])
    write_rows(tmp_path / "shards" / "b.jsonl", [rows[3], {"text": 3}, rows[4]])
    (tmp_path / "shards" / "c.jsonl").touch()
    return tmp_path


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No workers: a process that imports jax takes seconds. test_sharded.py is about workers."""
    monkeypatch.setattr(mine_run, "supervise", supervise_in_process)
    monkeypatch.setattr(clusters, "supervise", supervise_in_process)


def stages(run_dir: str) -> dict[str, dict[str, Any]]:
    return json.loads(Path(run_dir, "summary.json").read_text())


def test_shards_become_what_the_commands_make_of_them(here, in_process, capsys):
    assert rationalyst(f"{RUN} --run_dir run --filter.tau_by_source.web 2") == 0
    said = capsys.readouterr().out
    assert "left out: shards/b.jsonl:2: 'text' must be text, found 3\n" in said
    assert "no document has source web, which tau_by_source names" in said
    assert "all rationales in run/merge/rationales.parquet" in said

    # A shard alone, with its own seed.
    made = read_provenance("run/annotate/a/triples.parquet").config["annotate"]
    assert isinstance(made, dict)
    alone = f"mine --documents shards/a.jsonl --out alone {HOW} --annotate.seed {made['seed']}"
    assert rationalyst(alone) == 0
    assert Path("alone/triples.parquet").read_bytes() == Path("run/annotate/a/triples.parquet").read_bytes()
    judged = f"{JUDGED} --filter.keep all --filter.tau_by_source.world 0.5"
    command = f"filter --triples alone/triples.parquet --model world --prompts world --out a.parquet {judged}"
    assert rationalyst(command) == 0
    assert Path("a.parquet").read_bytes() == Path("run/filter/a/rationales.parquet").read_bytes()

    # All of them.
    merged = Path("run/merge/rationales.parquet")
    of_shards = [read_filtered(f"run/filter/{shard}/rationales.parquet") for shard in "abc"]
    assert read_filtered(merged) == [triple for shard in of_shards for triple in shard]
    assert of_shards[0] and of_shards[1] and not of_shards[2]
    assert len(list(kept_rationales(merged))) == len(of_shards[0]) + len(of_shards[1])
    config: Any = read_provenance(merged).config
    assert config["annotate"]["seed"] == 0 and config["filter"]["tau_by_source"] == {"world": 0.5, "web": 2}

    # What it took.
    found = stages("run")
    assert found["documents"]["tally"]["counts"] == {"source: world": 5, "bad row": 1}
    assert (
        found["annotate"]["tally"]["made"] == found["filter"]["tally"]["taken"] == len(read_filtered(merged))
    )
    assert found["annotate"]["tokens"] > 500 and found["filter"]["tokens"] > 0
    assert found["filter"]["tally"]["flops"] > 0
    capsys.readouterr()
    assert rationalyst("mine status --run_dir run") == 0
    assert "annotate 3 of 3 0 0" in " ".join(capsys.readouterr().out.split())
    shard = Path("shards/c.jsonl")
    times = (shard.stat().st_atime_ns, shard.stat().st_mtime_ns)
    os.utime(shard, (0, 0))
    assert rationalyst("mine status --run_dir run") == 0
    assert "documents 2 of 3 0 1" in " ".join(capsys.readouterr().out.split())
    os.utime(shard, ns=times)

    # Settings that change what is made are refused, and nothing is lost.
    before = merged.read_bytes()
    assert rationalyst(f"{RUN} --run_dir run --filter.tau_by_source.web 3") == 1
    told = "run/experiment.config.json: made with other settings: filter.tau_by_source.web 2.0 -> 3.0; remove"
    assert told in capsys.readouterr().err
    assert merged.read_bytes() == before


def test_documents_pass_the_stages_as_they_pass_the_commands_and_the_card_tells_what_became_of_them(
    here, in_process
):
    save_encoder(here / "encoder")
    rows = list(documents(0, 12))
    # Shards of both formats; the second has a duplicate of the first.
    Path("web/more").mkdir(parents=True)
    write_rows(Path("web/more/a.jsonl"), rows[:6])
    pq.write_table(pa.Table.from_pylist([*rows[6:], rows[0] | {"id": "again"}]), "web/b.parquet")
    write_rows(Path("train.jsonl"), original_rows("gsm8k", "train", 6))
    options = "--prefilter.workers 0 --prefilter.recall 1 --prefilter.held_out 0.5"
    command = f"prefilter --documents web --encoder encoder --references gsm8k=train.jsonl --out 1 {options}"
    assert rationalyst(command) == 0
    near = read_documents("1/documents.jsonl")
    assert {"again", rows[0]["id"]} < {document.id for document in near} and len(near) < 13
    write_rows(Path("test.jsonl"), [{"question": near[0].text, "answer": "It is so.\n#### 4"}])
    passing = f"--encoder encoder --references.gsm8k train.jsonl --against.gsm8k test.jsonl {options}"
    assert rationalyst(f"{RUN.replace('documents shards', 'documents web')} {passing} --run_dir run") == 0
    assert list(stages("run")) == [
        *("documents", "check", "prefilter", "sign", "duplicates", "dedup", "decontaminate"),
        *("annotate", "filter", "merge"),
    ]

    commands = (
        "dedup --documents 1/documents.jsonl --out 2",
        "decontaminate --documents 2/documents --against gsm8k=test.jsonl --out 3",
    )
    for command in commands:
        assert rationalyst(command) == 0
    [apart] = [read_documents(path) for path in Path("3/documents").iterdir()]
    passed = [
        one
        for shard in ("b", "more+a")
        for one in read_documents(f"run/decontaminate/{shard}/documents.jsonl")
    ]
    assert passed == apart and len(passed) == len(near) - 2
    found = stages("run")
    assert found["dedup"]["tally"]["counts"]["exact_duplicate"] == 1
    assert found["decontaminate"]["tally"]["counts"]["question"] == 1
    assert found["prefilter"]["tokens"] > 0 and found["prefilter"]["tally"]["flops"] > 0
    for stage, folder in (("dedup", "2"), ("decontaminate", "3")):
        ours = read_json(Path("run/merge", f"{stage}.json"))
        theirs = read_json(Path(folder, f"{stage}.json"))
        assert ours["outcomes"] == theirs["outcomes"] and ours.get("tasks") == theirs.get("tasks")
    card = "card --rationales run/merge/rationales.parquet --name n --out card"
    assert rationalyst(f"{card} --dedup run/merge --decontaminate run/merge") == 0
    assert "exact duplicate" in Path("card/README.md").read_text()


GPUS = {
    **{("documents",): 0, ("check",): 0, ("prefilter",): 1, ("sign",): 0, ("duplicates",): 0},
    **{("dedup", "decontaminate"): 0, ("annotate", "filter"): 1, ("merge",): 0},
}


def test_only_ranks_of_stages_with_a_model_ask_for_gpus(tmp_path):
    (tmp_path / "a.jsonl").touch()
    cluster = ClusterConfig(tasks=2, gpus_per_task=1)

    def asked(model: str, scorer: str | None = None) -> dict[tuple[str, ...], int]:
        questions = {"gsm8k": "questions.jsonl"}
        config = MineRunConfig(
            run_dir="run",
            documents="a.jsonl",
            model=model,
            prompts="world",
            scorer=scorer,
            executor="ray",
            encoder="encoder",
            references=questions,
            against=questions,
            cluster=cluster,
        )
        shards = {"a": tmp_path / "a.jsonl"}
        groups = ShardedRun(tmp_path / "run", shards, mine_stages.stages(config), {}, losses=0).groups()
        step: Any = None
        told = [clusters._settings(step, group, cluster, tmp_path) for group in groups]
        return {tuple(group.stages): one["gpus_per_task"] for group, one in zip(groups, told, strict=True)}

    assert asked("world") == GPUS
    through_an_endpoint = asked("http://127.0.0.1:9/v1", "world")
    assert through_an_endpoint["dedup", "decontaminate", "annotate"] == 0
    assert through_an_endpoint["filter",] == 1


BAD_SHARDS = {
    "--bad_rows 0": "stage documents of b: shards/b.jsonl:2: 'text' must be text, found 3; what is done",
    "--bad_rows 0.3": "'text' must be text, found 3; 1 of 3 rows are malformed, bad_rows is 0.3; what",
    "--filter.tau_by_source {web: 2}": "tau_by_source names web, but the sources are world",
}


@pytest.mark.parametrize("options", BAD_SHARDS)
def test_what_is_wrong_with_shards_is_told_in_a_line_before_any_is_annotated(
    here, in_process, capsys, options
):
    place = options.partition(" ")
    assert rationalyst(f'{RUN} --run_dir run {place[0]} "{place[2]}"') == 1
    told = capsys.readouterr().err
    assert BAD_SHARDS[options] in told and told.count("\n") == 1
    assert not Path("run/annotate").exists() and Path("run/documents/a/documents.jsonl").exists()


def test_shards_that_share_an_id_are_refused_by_name(here, in_process, capsys):
    [row] = documents(0, 1)
    write_rows(here / "shards" / "d.jsonl", [row])
    assert rationalyst(f"{RUN} --run_dir run") == 1
    told = capsys.readouterr().err
    assert f"stage check of all shards: shards a and d both have a document '{row['id']}'" in told
    assert not Path("run/annotate").exists()


BAD_INPUT = {
    "mine run --documents shards --encoder nowhere": "a prefilter needs both, an encoder and references",
    "mine run --documents shards --encoder nowhere --references.gsm8k nowhere.jsonl": "nowhere.jsonl",
    "mine run --documents shards --against.gsm8k nowhere.jsonl": "nowhere.jsonl: ",
    "mine run --documents shards --against.nonsense shards/a.jsonl": "unknown task 'nonsense'",
    "mine run --documents shards --dedup.seed 3 --duplicates true": "dedup: settings of a stage that is not",
    "mine run --documents shards --executor ray": "mine run: --executor ray needs cluster.tasks",
    "mine run --documents shards --executor slurm --cluster.tasks 3": "slurm needs cluster.partition",
    "mine run --documents shards --cluster.tasks 3": "mine run: --executor here has no use for cluster.tasks",
    "mine run --documents d --executor ray --cluster.tasks 3 --cluster.time 9": "has no use for cluster.time",
    "mine run --documents nowhere": "nowhere: no such file of documents, nor a folder of them",
    "mine run --documents empty": "empty: no file of documents in this folder",
    "mine run --documents run": "run: lies in run, which is read: write elsewhere",
    "mine run --documents shards --model nowhere": "nowhere: no such checkpoint folder",
    "mine run --documents shards --filter.suppress [nonsense]": "suppress: 'nonsense' is",
    "mine run --documents shards --scorer http://127.0.0.1:9/v1": "a checkpoint folder is needed here",
    "mine status": "run/shards.json: no such file",
}


@pytest.mark.parametrize("command", BAD_INPUT)
def test_bad_input_is_told_in_one_line_and_nothing_is_written(here, capsys, command):
    Path("run").mkdir()
    Path("empty").mkdir()
    run = "" if command == "mine status" else "--prompts world"
    model = "" if "--model" in command or command == "mine status" else "--model world"
    assert rationalyst(f"{command} {model} {run} --run_dir run") == 1
    told = capsys.readouterr().err
    assert BAD_INPUT[command] in told and told.count("\n") == 1
    assert not list(Path("run").iterdir())


PROGRAM = """
import sys
from rationalyst_jax.cli.main import main
if __name__ == "__main__":
    status = main(sys.argv[1:])
    from jax._src import xla_bridge
    assert not xla_bridge.backends_are_initialized()  # a GPU would be taken from the workers
    sys.exit(status)
"""


def workers_of(process: int) -> list[int]:
    """The child processes that are workers, and not Python's resource tracker."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    command = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return [int(child) for child, words in command.items() if b"spawn_main" in words]


@pytest.mark.slow  # test_sharded.py has the fast ones, without a model
def test_a_run_whose_workers_are_killed_ends_with_the_same_bytes(here):
    (here / "run.py").write_text(PROGRAM)

    def start(run_dir: str, workers: int) -> subprocess.Popen:
        command = f"{RUN} --run_dir {run_dir} --workers {workers}"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen([sys.executable, "run.py", *command.split()], env=environment)

    def begun() -> Iterator[Path]:
        return Path("killed").glob("annotate/*/annotations.jsonl")

    run = start("killed", workers=2)
    for _ in range(3):
        while not any(path.stat().st_size for path in begun()):
            assert run.poll() is None
            time.sleep(0.1)
        for worker in workers_of(run.pid):
            os.kill(worker, signal.SIGKILL)
        time.sleep(1)
    assert run.wait(timeout=600) == 0
    assert start("whole", workers=1).wait(timeout=600) == 0
    names = [path.relative_to("whole") for path in Path("whole").rglob("*.*") if path.suffix != ".json"]
    assert len(names) > 10
    for name in names:
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes(), name
