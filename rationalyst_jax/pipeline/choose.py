"""The stage `choose`: multiple-choice questions answered by the likelihood of their choices."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import get_args

import jax

from rationalyst_jax.evaluate.choice_likelihood import (
    ChoiceScores,
    Rule,
    begin,
    check_lengths,
    encode_clozes,
)
from rationalyst_jax.evaluate.config import ChooseConfig
from rationalyst_jax.evaluate.statistics import Interval, proportion_interval
from rationalyst_jax.files.parts import ALONE, DividedFile, HostShard
from rationalyst_jax.files.rows import Row, append_rows, kept_rows, write_rows
from rationalyst_jax.files.settings import digest, file_digest
from rationalyst_jax.files.whole import check_file, read_json, write_json
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.lm.devices.sharding import mesh_of, row_shards
from rationalyst_jax.lm.trees.likelihood import Work, one_ahead
from rationalyst_jax.pipeline.models import Models, Place
from rationalyst_jax.tasks.cloze import Cloze
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.sources import Source, read_questions
from rationalyst_jax.tasks.task import Task


@dataclass(frozen=True)
class ChooseSummary:
    """questions: how many; graded: those with a known answer. accuracy: under each rule that was computed, of
    the graded ones; empty where there are none. work: of this call."""

    questions: int
    graded: int
    accuracy: Mapping[Rule, Interval]
    work: Work


def choose(
    task: Task,
    questions: Source,
    model: Place,
    models: Models,
    config: ChooseConfig,
    out: Path,
    *,
    limit: int | None = None,
    mesh: MeshShape | None = None,
    shard: HostShard = ALONE,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
) -> ChooseSummary:
    """Scores all choices of the first `limit` questions of a task's file (None: all).

    The JSONL file `out` gets a row for each: its id, gold letter, context and choices as they were scored,
    of each choice the number of tokens and its numbers under every rule (see
    `evaluate/choice_likelihood.py`), and the letter that each rule picks. Until it is whole it is called
    `<out>.partial`; a run that was killed continues there, and scores anew only blocks with questions that
    have changed since. What was asked stays in `<out>.config.json`. mesh: divides all devices of
    this host; by default one is used. shard: the part of the questions that is this process's
    (`files/parts.py`); where others are still at work, or `out` is there as asked, it raises OthersAtWork.

    Raises ValueError for a task whose choices are not scored, a malformed file, a question that is longer
    than a row or than the model's positions (before the model is loaded), for rows that the mesh does not
    divide, for work begun with other settings, and while another process is at this work.
    """
    if task.cloze is None:
        raise ValueError(f"choose: {task.name} has no choices that a likelihood could be asked for")
    check_file(out)
    asked = {question.id: question for question in read_questions(task, questions)[:limit]}
    devices = None if mesh is None else mesh_of(mesh, jax.local_devices())
    if config.rows_per_batch % (shards := row_shards(devices)):
        raise ValueError(
            f"choose: rows_per_batch must be a multiple of the mesh's {shards} row shards, "
            f"got {config.rows_per_batch}"
        )
    checkpoint = models.checkpoint(model)
    clozes = {name: task.cloze(question) for name, question in asked.items()}
    encoded = encode_clozes(checkpoint.tokenizer, clozes)
    check_lengths(encoded, config.row_length, "choose.row_length is")
    check_lengths(encoded, checkpoint.config.max_position_embeddings, "the positions of the model are")
    graded = {name: question.gold for name, question in asked.items() if question.gold}
    clusters = [asked[name].cluster for name in graded]
    headers = {name: _header(question, clozes[name]) for name, question in asked.items()}

    def name_of(row: Row) -> str | None:
        header = headers.get(str(row.get("id")), {})
        return row["id"] if header and all(row.get(key) == header[key] for key in header) else None

    def score(names: Sequence[str], file: Path) -> tuple[dict[str, Row], Work]:
        """The rows of questions, which are in the file too, and the work that took."""
        rows = kept_rows(file, lambda place, row: name_of(row))
        blocks = [names[start : start + config.block] for start in range(0, len(names), config.block)]
        # A block is scored as a whole: the last bits of a sum depend on what is computed beside it.
        missing = [block for block in blocks if not rows.keys() >= {*block}]
        done = len(names) - sum(map(len, missing))
        work = Work()
        scorer = models.scorer(model, devices)

        def tell(nodes: int = 0) -> None:
            progress(done, len(names), work.nodes + nodes)

        begun = (begin(scorer, {name: encoded[name] for name in block}, config, devices) for block in missing)
        tell()
        for block in one_ahead(begun):
            new = {name: headers[name] | _numbers(scores) for name, scores in block.result(tell).items()}
            append_rows(file, new.values())
            rows |= new
            done += len(new)
            work += block.scores.work
            tell()
        return rows, work

    partial = out.with_name(f"{out.name}.partial")
    record = out.with_name(f"{out.name}.config.json")
    settings = {"task": task.name, "model": checkpoint.fingerprint, "choose": asdict(config)}
    names = list(headers)

    def made() -> Row:
        """What is recorded of a file that is whole."""
        asked = digest(json.dumps(header).encode() for header in headers.values())
        return json.loads(json.dumps(settings)) | {"questions": asked, "out": file_digest(out)}

    def is_made() -> bool:
        return out.exists() and record.exists() and read_json(record) == made()

    divided = DividedFile(
        partial, record, settings, names, config.block, name_of, output=out, is_made=is_made
    )
    work = Work()
    if shard != ALONE:
        with divided.part(shard) as (part, numbers):
            _, work = score([names[number] for number in numbers], part)
    with divided.whole(shard) as file:
        rows, rest = score(names, file)
        write_rows(out, [rows[name] for name in names])
        partial.unlink()
        write_json(record, made())
    rules = [rule for rule in get_args(Rule) if rule in rows[names[0]]["picked"]]
    right = {rule: [rows[name]["picked"][rule] == gold for name, gold in graded.items()] for rule in rules}
    accuracy = {rule: proportion_interval(of_rule, clusters) for rule, of_rule in right.items() if graded}
    return ChooseSummary(len(names), len(graded), accuracy, work + rest)


def _header(question: Question, cloze: Cloze) -> Row:
    """What a row says of the question."""
    return {
        "id": question.id,
        "gold": question.gold or None,
        "context": cloze.context,
        "choices": list(cloze.choices),
    }


def _numbers(scores: ChoiceScores) -> Row:
    """What a row says of the choices: tokens, the numbers under each rule, and the letters picked."""
    picked = {rule: ascii_uppercase[scores.picked(rule)] for rule in scores.values}
    numbers = {rule: list(of_rule) for rule, of_rule in scores.values.items()}
    return {"tokens": list(scores.tokens), **numbers, "picked": picked}
