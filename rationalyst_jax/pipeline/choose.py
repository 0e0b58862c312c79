"""The stage `choose`: multiple-choice questions answered by the likelihood of their choices."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from string import ascii_uppercase
from typing import get_args

import jax
import numpy as np

from rationalyst_jax.evaluate.choice_likelihood import (
    ChoiceScores,
    GuidedAccuracy,
    Rule,
    begin,
    check_lengths,
    encode_clozes,
)
from rationalyst_jax.evaluate.config import ChooseConfig
from rationalyst_jax.evaluate.statistics import Interval, difference_interval, proportion_interval
from rationalyst_jax.files.parts import ALONE, DividedFile, HostShard, Waiting
from rationalyst_jax.files.rows import Row, append_rows, kept_rows, write_rows
from rationalyst_jax.files.settings import digest, file_digest
from rationalyst_jax.files.whole import check_file, read_json, write_json
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.lm.devices.sharding import mesh_of, row_shards
from rationalyst_jax.lm.trees.likelihood import Work, one_ahead
from rationalyst_jax.pipeline.models import Models, Place
from rationalyst_jax.prompts.prompt import PromptSet
from rationalyst_jax.reason.rationales import rationalize_texts, text_digests
from rationalyst_jax.tasks.cloze import Cloze
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.sources import Source, read_questions
from rationalyst_jax.tasks.task import Task

WHOSE = ("own", "stranger")  # whose rationales a question is asked under


@dataclass(frozen=True)
class Guide:
    """Who writes a rationale for each question, and with which prompts."""

    rationalyst: Place
    prompts: PromptSet


@dataclass(frozen=True)
class ChooseSummary:
    """questions: how many; graded: those with a known answer. accuracy: under each rule that was computed, of
    the graded ones; empty where there are none. guided: the same with rationales. work: of this call."""

    questions: int
    graded: int
    accuracy: Mapping[Rule, Interval]
    guided: Mapping[Rule, GuidedAccuracy]
    work: Work


def choose(
    task: Task,
    questions: Source,
    model: Place,
    models: Models,
    config: ChooseConfig,
    out: Path,
    *,
    guide: Guide | None = None,
    limit: int | None = None,
    mesh: MeshShape | None = None,
    shard: HostShard = ALONE,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
    note: Callable[[str], None] = print,
) -> ChooseSummary:
    """Scores all choices of the first `limit` questions of a task's file (None: all).

    The JSONL file `out` gets a row for each: its id, gold letter, context and choices as they were scored,
    of each choice the number of tokens and its numbers under every rule (see
    `evaluate/choice_likelihood.py`), and the letter that each rule picks. Until it is whole it is called
    `<out>.partial`; a run that was killed continues there, and scores anew only blocks with questions that
    have changed since. What was asked stays in `<out>.config.json`. mesh: divides all devices of
    this host; by default one is used. shard: the part of the questions that is this process's
    (`files/parts.py`); where others are still at work, or `out` is there as asked, it raises OthersAtWork.

    guide: RATIONALYST writes a rationale for each context first, greedily, into `<out>.rationales.jsonl`.
    Choices are then scored three times: after the context alone, with its own rationale, and with that of
    another question (of another passage), drawn by lot. `progress` counts the writing as one more pass over
    the questions. A process that is not alone waits for all rationales, and tells `note` so.

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
    settings: Row = {"task": task.name, "model": checkpoint.fingerprint, "choose": asdict(config)}
    limits = {
        "choose.row_length is": config.row_length,
        "the positions of the model are": checkpoint.config.max_position_embeddings,
    }
    encoded = encode_clozes(checkpoint.tokenizer, clozes)
    check_lengths(encoded, limits)
    guides: dict[str, tuple[str, str]] = {}
    tokens = 0  # computed until choices are scored
    if guide is None:
        for key in ("max_rationale_tokens", "seed"):  # decide nothing here
            del settings["choose"][key]
    else:
        settings |= {"rationalyst": models.known(guide.rationalyst).name, "prompts": guide.prompts.version}
        models.check(guide.rationalyst, guide.prompts, ("rationale",))
        others = _strangers(asked, config.seed)
        said, tokens = _rationalize(task, clozes, guide, models, config, out, shard, progress, note)
        guides = {name: (said[name], said[others[name]]) for name in asked}
        encoded = encode_clozes(checkpoint.tokenizer, clozes, guides)
        check_lengths(encoded, limits)
    graded = {name: question.gold for name, question in asked.items() if question.gold}
    clusters = [asked[name].cluster for name in graded]
    headers = {name: _header(question, clozes[name], guides.get(name)) for name, question in asked.items()}

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
            before = len(names) if guides else 0
            progress(before + done, before + len(names), tokens + work.nodes + nodes)

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
    names = list(headers)

    def made() -> Row:
        """What is recorded of a file that is whole."""
        given = digest(json.dumps(header).encode() for header in headers.values())
        return json.loads(json.dumps(settings)) | {"questions": given, "out": file_digest(out)}

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

    def right(rule: Rule, *under: str) -> list[bool]:
        """Of each graded question, whether the rule picks its answer, `under` a rationale if there is one."""
        scored = ((reduce(getitem, under, rows[name]), gold) for name, gold in graded.items())
        return [numbers["picked"][rule] == gold for numbers, gold in scored]

    accuracy: dict[Rule, Interval] = {}
    guided: dict[Rule, GuidedAccuracy] = {}
    for rule in rules if graded else ():
        plain = right(rule)
        accuracy[rule] = proportion_interval(plain, clusters)
        if guide is not None:
            own, stranger = (right(rule, "guided", whose) for whose in WHOSE)
            guided[rule] = GuidedAccuracy(
                proportion_interval(own, clusters),
                difference_interval(own, plain, clusters),
                difference_interval(own, stranger, clusters),
            )
    return ChooseSummary(len(names), len(graded), accuracy, guided, work + rest)


def _header(question: Question, cloze: Cloze, guides: Sequence[str] | None) -> Row:
    """What a row says of the question, and of the rationales under which it is asked."""
    header = {
        "id": question.id,
        "gold": question.gold or None,
        "context": cloze.context,
        "choices": list(cloze.choices),
    }
    return header if guides is None else header | {"rationales": dict(zip(WHOSE, guides, strict=True))}


def _numbers(scores: ChoiceScores) -> Row:
    """What a row says of the choices: tokens, the numbers under each rule, and the letters picked; then the
    same under each rationale."""
    picked = {rule: ascii_uppercase[scores.picked(rule)] for rule in scores.values}
    numbers = {rule: list(of_rule) for rule, of_rule in scores.values.items()}
    row = {"tokens": list(scores.tokens), **numbers, "picked": picked}
    if scores.guided:
        row["guided"] = dict(zip(WHOSE, map(_numbers, scores.guided), strict=True))
    return row


def _rationalize(
    task: Task,
    clozes: Mapping[str, Cloze],
    guide: Guide,
    models: Models,
    config: ChooseConfig,
    out: Path,
    shard: HostShard,
    progress: Callable[[int, int, int], None],
    note: Callable[[str], None],
) -> tuple[dict[str, str], int]:
    """What RATIONALYST writes for each context, and the tokens that took."""
    # A blank before the rationale, as before a choice.
    contexts = {name: f"{cloze.context.rstrip()} " for name, cloze in clozes.items()}
    texts = text_digests(contexts)

    def name_of(row: Row) -> str | None:
        name = str(row.get("id"))
        return name if name in texts and row.get("asked") == texts[name] else None

    def written(names: Sequence[str], file: Path) -> tuple[dict[str, str], int]:
        kept = kept_rows(file, lambda place, row: name_of(row))
        if [*kept] == [*names]:  # no model needs to be opened
            return {name: str(row["rationale"]) for name, row in kept.items()}, 0
        [role] = models.roles(guide.rationalyst)

        def tell(done: set[str]) -> None:
            progress(len(done), 2 * len(names), role.model.tokens)

        found = rationalize_texts(
            {name: contexts[name] for name in names},
            role,
            guide.prompts["rationale"],
            config.max_rationale_tokens,
            config.block,
            file,
            tell,
            stage="choose",
            what="question",
        )
        return found, role.model.tokens

    def check(path: Path, rows: Sequence[tuple[str, Row]]) -> None:
        if rows and not any(str(row.get("id")) in texts for _, row in rows):
            raise ValueError(f"{path}: holds other questions alone; remove it or write elsewhere")

    file = out.with_name(f"{out.name}.rationales.jsonl")
    record = file.with_name(f"{file.name}.config.json")
    settings = {
        "task": task.name,
        "rationalyst": models.known(guide.rationalyst).name,
        "prompts": guide.prompts.version,
        "max_rationale_tokens": config.max_rationale_tokens,
        "block": config.block,
    }
    names = list(texts)
    divided = DividedFile(file, record, settings, names, config.block, name_of, check=check)
    if shard != ALONE:
        with divided.part(shard) as (part, numbers):
            written([names[number] for number in numbers], part)
    with divided.whole(shard, Waiting(note)) as whole:
        return written(names, whole)


def _strangers(questions: Mapping[str, Question], seed: int) -> dict[str, str]:
    """For each question another one, of another passage, whose rationale stands in."""
    clusters = {name: question.cluster for name, question in questions.items()}
    if len(set(clusters.values())) < 2:
        raise ValueError("choose: rationales are compared with those of other questions: give two or more")
    names = list(questions)
    drawn = {}
    for name in names:
        rng = np.random.default_rng([seed, int(digest([name.encode()]), 16)])
        drawn[name] = name
        while clusters[drawn[name]] == clusters[name]:
            drawn[name] = names[rng.integers(len(names))]
    return drawn
