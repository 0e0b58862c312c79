"""Rationales inserted at places of documents: what is asked, what is written down, what becomes of it."""

import json
import re
from dataclasses import asdict, replace
from itertools import islice, pairwise, takewhile
from typing import Any, cast

import numpy as np
import pytest
from cli_files import DOCUMENT, rationalyst
from one_a_step import OneAStep
from test_mine import write_lines

from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import GenerateRequest, Generation, Handle, ScoreRequest
from rationalyst_jax.lm.trees.likelihood import Pair, score
from rationalyst_jax.lm.trees.reduction import reduce_logprobs
from rationalyst_jax.lm.weights.hf import load_llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer, marker_ids
from rationalyst_jax.mine.annotate import annotate, read_usage, usage_path
from rationalyst_jax.mine.config import AnnotateConfig, FilterConfig
from rationalyst_jax.mine.documents import (
    Document,
    Insertion,
    SampledPlace,
    SampledRationale,
    annotated_row,
    read_annotations,
    read_documents,
)
from rationalyst_jax.mine.likelihood_filter import ScoredTriple, decide
from rationalyst_jax.mine.parse import read_insertion
from rationalyst_jax.mine.places import find_places
from rationalyst_jax.mine.summary import summarize_mined
from rationalyst_jax.mine.triples import Triple, extract
from rationalyst_jax.prompts.prompt import Prompt, PromptSet, load_prompts, render
from rationalyst_jax.roles.role import Role, derived_seed
from rationalyst_jax.roles.usage import Usage
from rationalyst_jax.world.checkpoint import checkpoint_path
from rationalyst_jax.world.corpus import documents as world_documents

TEXT = "One two. Three four five. Six. Seven eight.\nNine ten"
STARTS = [9, 26, 31, 44]
DOCUMENTS = [Document(f"d{i}", TEXT[i:], "s") for i in range(6)]
PROMPTS = PromptSet(
    "1",
    "{question}\n",
    {
        "insert": Prompt("insert", (("assistant", "{preceding}|think|{rationale}|end|"),)),
        "rationale": Prompt("rationale", (("assistant", "{preceding}|tuned|{rationale}"),)),
        "follow": Prompt("follow", (("assistant", "{preceding}{following}"),)),
    },
)


class Thinking(OneAStep):
    """Writes as many texts as it is asked for, with the seed in them. The log-probability of a token is minus
    its id."""

    def answer(self, handle: Handle) -> Any:
        request = handle.request
        if isinstance(request, ScoreRequest):
            handle.usage.scored = len(request.continuation)
            return -np.array(request.continuation, np.float32)
        handle.usage.generated = request.n
        texts = [f" thought {k} of {request.seed} é\n" for k in range(request.n)]
        return [Generation((1,), np.zeros(1), text, "stop") for text in texts]


class LetterRole(Role):
    """Characters as tokens. The ids of scored text are 1, but of a dearer word."""

    dear = "zzz"

    def count_tokens(self, text):
        return len(text)

    def to_generate(self, prompt, fields, how):
        options = {name: value for name, value in vars(how).items() if name != "suppress"}
        return GenerateRequest(tuple(map(ord, str(fields["preceding"]))), **options)

    def to_score(self, prompt, fields, target, suppress):
        value = 9 if self.dear in target else 1
        return ScoreRequest(tuple(map(ord, str(fields["preceding"]))), (value,) * len(target))


def run(path, model: Any, documents=DOCUMENTS, dear="zzz", **config):
    tokenizer: Any = None
    role = LetterRole(model, tokenizer)
    LetterRole.dear = dear
    settings = AnnotateConfig("insert", **{"block": 4, **config})
    return annotate(documents, role, PROMPTS, settings, path)


def shown(request: Any) -> str:
    return "".join(map(chr, request.context))


# What is asked


def test_each_place_is_asked_for_with_the_text_before_it_in_order(tmp_path):
    model = Thinking()
    run(tmp_path / "a.jsonl", model, documents=DOCUMENTS[:2], candidates=3, max_rationale_tokens=7, seed=5)
    asked = [*(TEXT[:start] for start in STARTS), *(TEXT[1:start] for start in STARTS)]
    assert [shown(request) for request in model.requests] == asked
    assert all(r.n == 3 and r.max_tokens == 7 and r.stop == ("|end|",) for r in model.requests)
    assert [r.seed for r in model.requests[:4]] == [derived_seed(5, 0, start) for start in STARTS]
    assert len({r.seed for r in model.requests}) == 8


def test_what_a_place_is_asked_for_does_not_depend_on_the_other_places(tmp_path):
    all_places, few = Thinking(), Thinking()
    run(tmp_path / "a.jsonl", all_places, documents=DOCUMENTS[:1])
    run(tmp_path / "b.jsonl", few, documents=DOCUMENTS[:1], places="line")
    assert few.requests == [all_places.requests[3]]


def test_a_rationalyst_is_asked_with_the_prompt_that_it_was_trained_on():
    assert AnnotateConfig().prompts == ("annotate",)
    assert AnnotateConfig("insert").prompts == ("insert",)
    assert AnnotateConfig("insert", prompt="rationale", most_places=2).prompts == ("rationale", "follow")


@pytest.mark.parametrize("dear", ["Six", "Nine"])
def test_the_most_surprising_places_are_taken_and_their_words_go_on_to_the_next_of_them(tmp_path, dear):
    model = Thinking()
    [insertion] = run(tmp_path / "a.jsonl", model, documents=DOCUMENTS[:1], dear=dear, most_places=2)
    scored, asked = model.requests[:4], model.requests[4:]
    bounds = [*STARTS, len(TEXT)]
    assert [shown(r) for r in scored] == [TEXT[:start] for start in STARTS]
    assert [len(r.continuation) for r in scored] == np.diff(bounds).tolist()
    # Of the others the one with the most words before the next place surprises most.
    expected = [9, TEXT.index(dear)]
    assert [shown(r) for r in asked] == [TEXT[:start] for start in expected]
    assert isinstance(insertion, Insertion)
    assert [(p.start, p.end) for p in insertion.places] == [(9, expected[1]), (expected[1], len(TEXT))]


def test_nothing_is_scored_where_all_places_are_taken_anyway(tmp_path):
    model = Thinking()
    run(tmp_path / "a.jsonl", model, most_places=4)
    assert all(isinstance(request, GenerateRequest) for request in model.requests)


@pytest.fixture(scope="module")
def world() -> tuple[Role, PromptSet]:
    base = checkpoint_path("world")
    tokenizer = load_tokenizer(base)
    engine = Engine(load_llama(base), tokenizer, max_sequences=8, prefill_chunks=1)
    return Role(engine, tokenizer), load_prompts("world")


def documents_of_the_world(seed: int, count: int) -> list[Document]:
    return [Document(row["id"], row["text"], row["source"]) for row in world_documents(seed, count)]


def test_the_surprise_of_a_real_model_is_what_the_filter_scores(tmp_path, world):
    role, prompts = world
    config = AnnotateConfig(
        "insert", places="line", most_places=2, max_rationale_tokens=4, suppress=("<BOT>",)
    )
    documents = documents_of_the_world(3, 3)
    groups = []
    for document in documents:
        starts = find_places(document.text, "line")
        texts = [document.text[start:end] for start, end in pairwise([*starts, len(document.text)])]
        fields = [{"preceding": document.text[:start]} for start in starts]
        ids = [
            render(role.tokenizer, prompts["follow"], given, text, False)
            for given, text in zip(fields, texts, strict=True)
        ]
        groups.append([Pair(*pair) for pair in ids])
    suppress = marker_ids(role.tokenizer, ("<BOT>",))
    model = cast(Engine, role.model).model
    scores = score(model, groups, row_length=512, rows_per_batch=1, suppress=suppress).result()
    insertions = annotate(documents, role, prompts, config, tmp_path / "a.jsonl")
    for insertion, logprobs in zip(insertions, scores, strict=True):
        surprise = [-reduce_logprobs(of_line, "decayed_sum") for of_line in logprobs]
        starts = find_places(insertion.document.text, "line")
        assert isinstance(insertion, Insertion) and len(starts) > 2
        most = sorted(np.argsort(surprise)[-2:])
        assert [place.start for place in insertion.places] == [starts[i] for i in most]


def test_documents_that_are_too_long_are_left_out_and_places_without_room(tmp_path):
    insertions = run(tmp_path / "a.jsonl", Thinking(), max_document_tokens=len(TEXT) - 2)
    assert [one.finish for one in insertions] == ["too_long"] * 2 + ["sampled"] * 4
    # A place has room for a rationale of 10 tokens where 40 positions hold both.
    found = run(
        tmp_path / "b.jsonl", Thinking(positions=40), max_rationale_tokens=10, documents=DOCUMENTS[:1]
    )
    [insertion] = found
    assert isinstance(insertion, Insertion)
    assert [(p.start, p.end) for p in insertion.places] == [
        (9, 26),
        (26, 31),
    ]  # it ends where the next begins
    [insertion] = run(
        tmp_path / "c.jsonl", Thinking(positions=9), max_rationale_tokens=1, documents=DOCUMENTS[:1]
    )
    assert insertion.finish == "too_long"
    found = run(
        tmp_path / "d.jsonl", Thinking(positions=28), max_rationale_tokens=1, documents=DOCUMENTS[:1],
        most_places=2,
    )  # fmt: skip
    assert isinstance(found[0], Insertion) and [p.start for p in found[0].places] == [9]  # the second has 14+


def test_a_document_without_a_place_is_passed_over(tmp_path):
    model = Thinking()
    [insertion] = run(tmp_path / "a.jsonl", model, documents=[Document("d", "One line", "s")])
    assert insertion == Insertion(Document("d", "One line", "s"), (), "sampled") and not model.requests
    assert extract([insertion]).documents == {"no_place": 1}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("places", "line"),
        ("most_places", 3),
        ("candidates", 2),
        ("max_rationale_tokens", 9),
        ("prompt", "rationale"),
        ("suppress", ("<BOT>",)),
    ],
)
def test_a_setting_of_insertion_is_refused_where_documents_are_copied(key, value):
    with pytest.raises(ValueError) as error:
        AnnotateConfig(**{key: value})
    assert str(error.value) == f"annotate: {key} is {value!r}, but method copy inserts nothing"
    AnnotateConfig("insert", **{key: value})


@pytest.mark.parametrize("key", ["most_places", "candidates", "max_rationale_tokens"])
def test_a_count_below_1_is_named(key):
    with pytest.raises(ValueError, match=f"annotate: {key} must be at least 1, got 0"):
        replace(AnnotateConfig("insert"), **{key: 0})


# What is written down


@pytest.mark.parametrize("config", [{"candidates": 2}, {"most_places": 2}])
def test_rows_are_read_back_as_they_were_written(tmp_path, config):
    insertions = run(tmp_path / "a.jsonl", Thinking(), **config)
    assert read_annotations(tmp_path / "a.jsonl") == insertions
    [first, *_] = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert first == annotated_row(insertions[0])
    assert first["places"][0]["start"] == 9 and first["places"][0]["seed"] == derived_seed(0, 0, 9)


@pytest.mark.parametrize("steps", [0, 5, 8, 13, 23])
@pytest.mark.parametrize("tail", ["", '{"id": "d4", "so'])
def test_a_killed_run_asks_only_for_what_is_missing_and_ends_with_the_same_bytes(tmp_path, steps, tail):
    run(tmp_path / "whole.jsonl", Thinking())
    path = tmp_path / "killed.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(path, Thinking(patience=steps))
    done = len(path.read_bytes().splitlines())
    for file in (path, usage_path(path)):
        if file.exists():
            with file.open("a") as rows:
                rows.write(tail)
    model = Thinking()
    run(path, model)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(model.requests) == 4 * (6 - done)
    assert read_usage(path) == read_usage(tmp_path / "whole.jsonl") == Usage(24, 24, flops=24_000)


def test_the_ledger_of_work_that_is_begun_anew_is_begun_anew(tmp_path):
    path = tmp_path / "a.jsonl"
    run(path, Thinking())
    path.unlink()
    run(path, Thinking())
    assert read_usage(path).requests == 24
    usage_path(path).write_text('{"id": "d0", "hours": 3}\n')
    with pytest.raises(ValueError, match=r"a\.usage\.jsonl:1: not a row of a ledger \(.*'hours'"):
        read_usage(path)


PLACE = {"start": 9, "end": 26, "seed": 1, "candidates": [{"text": "why", "finish": "end"}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"places": 3}, "'places' must be a list, found 3"),
        ({"places": [3]}, "a place must have integers start, end, seed, and candidates"),
        ({"places": [{**PLACE, "start": None}]}, "a place must have integers start, end, seed"),
        ({"places": [{**PLACE, "start": "9"}]}, "found {'start': '9', 'end': 26"),
        ({"places": [{**PLACE, "seed": True}]}, "a place must have integers"),
        ({"places": [{"start": 1}]}, "found {'start': 1}"),
        ({"places": [{**PLACE, "candidates": ["why"]}]}, "candidates, a list of objects"),
        ({"places": [{**PLACE, "candidates": [{"finish": "end"}]}]}, "no 'text'"),
        ({"places": [{**PLACE, "start": 0}]}, "a place from 0 to 26 is out of order, or outside the text"),
        ({"places": [{**PLACE, "end": 99}]}, "a place from 9 to 99 is out of order, or outside the text"),
        ({"places": [PLACE, PLACE]}, "a place from 9 to 26 is out of order"),
        ({"finish": 3}, "'finish' must be text, found 3"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path, changes, message):
    row = {"id": "d", "source": "s", "input": TEXT, "places": [PLACE], "finish": "sampled"}
    path = write_lines(tmp_path / "a.jsonl", {**row, "id": "c"}, {**row, **changes})
    with pytest.raises(ValueError) as error:
        read_annotations(path)
    assert str(error.value).startswith(f"{path}:2: ") and message in str(error.value)


# What becomes of it


def inserted(*candidates: tuple[str, str], document: Document = DOCUMENTS[0]) -> Insertion:
    places = [
        SampledPlace(9, 26, 1, tuple(SampledRationale(*one) for one in candidates)),
        SampledPlace(26, len(TEXT), 2, (SampledRationale("last", "end"),)),
    ]
    return Insertion(document, tuple(places), "sampled")


def test_what_was_sampled_has_an_outcome():
    insertion = inserted(
        (" why\n", "stop"),
        ("why", "end"),
        ("cut o", "length"),
        (" \n", "end"),
        ("a <BOT> b", "end"),
        ("four  five.", "end"),
    )
    first, second = read_insertion(insertion)
    assert [one.outcome for one in first] == ["clean", "repeated", "unclosed", "empty", "nested", "copied"]
    assert [(one.text, one.start) for one in (first[0], *second)] == [("why", 9), ("last", 26)]


def test_triples_hold_the_text_around_a_place_and_the_number_of_the_candidate():
    insertion = inserted(("", "end"), ("why", "end"), ("so", "end"))
    extraction = extract([insertion])
    assert [(t.index, t.rationale, t.start, t.end) for t in extraction.triples] == [
        (1, "why", 9, 26),
        (2, "so", 9, 26),
        (3, "last", 26, len(TEXT)),
    ]
    for t in extraction.triples:
        assert t.preceding + t.following == TEXT[: t.end] and t.preceding == TEXT[: t.start]
    summary = summarize_mined(extraction)
    assert (summary.documents, summary.annotated, summary.faithful, summary.triples) == (1, 1, 1, 3)
    assert summary.rationale_outcomes == {"clean": 3, "empty": 1}


def scored(start: int, gain: float | None, document: str = "d", source: str = "s") -> ScoredTriple:
    triple = Triple(document, source, 0, start, 99, "a ", "why", "b")
    without, guided = (None, None) if gain is None else (-2.0, gain - 2.0)
    return ScoredTriple(**asdict(triple), logprob_without=without, logprob_with=guided, gain=gain)


def test_the_best_of_a_place_is_kept_where_it_reaches_tau():
    places = [
        scored(1, 0.5),
        scored(1, 0.9),
        scored(1, 0.9),
        scored(1, None),
        scored(2, 0.05),
        scored(2, 0.06),
        scored(3, 0.2),
        scored(1, 0.3, "e"),
    ]
    best = decide(places, FilterConfig(tau=0.1, per_place="best"))
    assert [t.reason for t in best] == [
        "not_best", "gain", "not_best", "too_long", "below_tau", "below_tau", "gain", "gain",
    ]  # fmt: skip
    every = decide(places, FilterConfig(tau=0.1))
    assert [t.kept for t in every] == [True, True, True, False, False, False, True, True]
    drawn = decide(places, FilterConfig(tau=0.1, per_place="best", keep="random"))
    assert sum(t.kept for t in drawn) == 3
    unfiltered = decide(places, FilterConfig(per_place="best", keep="all"))
    assert sum(t.kept for t in unfiltered) == 7


def test_a_real_model_inserts_and_a_killed_run_continues_with_the_same_bytes(tmp_path, world):
    role, prompts = world
    documents = documents_of_the_world(7, 3)
    config = AnnotateConfig("insert", places="line", candidates=2, max_rationale_tokens=32, block=2)
    path = tmp_path / "a.jsonl"
    insertions = annotate(documents, role, prompts, config, path)
    extraction = extract(insertions)
    lines = sum(document.text.count("\n") for document in documents)
    assert sum(extraction.rationales.values()) == 2 * lines
    assert extraction.rationales["clean"] > 1.5 * lines  # it knows what it is asked for
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert annotate(documents, role, prompts, config, path) == insertions
    assert path.read_bytes() == whole


def test_a_document_is_computed_once_for_all_its_places(tmp_path, world):
    role, prompts = world
    text = "\n".join(row["text"] for row in world_documents(5, 7))
    config = AnnotateConfig("insert", places="line", max_rationale_tokens=2)
    [insertion] = annotate([Document("d", text, "s")], role, prompts, config, tmp_path / "a.jsonl")
    assert isinstance(insertion, Insertion)
    places = len(insertion.places)
    used = read_usage(tmp_path / "a.jsonl")
    page = 16
    assert places > 30
    # Beside the document each request computes no more than its own last page.
    assert used.prefilled < role.count_tokens(text) + page * places
    assert used.prefilled + used.cached > 10 * used.prefilled


def test_contexts_of_a_chat_differ_in_what_ends_them_alone(shared):
    """The text grows in the middle of the prompt: demonstrations are before it, the template's end after."""
    tokenizer = load_tokenizer(shared / "llama3_tokenizer")
    prompts = load_prompts("llama3")
    for one in islice(read_documents(shared / "pile_like" / "mixed.jsonl"), 0, None, 60):
        text = one.text[:1500]
        contexts = []
        for start in [*find_places(text, "sentence"), len(text)]:
            contexts.append(render(tokenizer, prompts["insert"], {"preceding": text[:start]}, None, False)[0])
        for context, longer in pairwise(contexts):
            same = sum(
                1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(context, longer, strict=False))
            )
            assert len(context) - same <= 8  # the end of the turn, the assistant's header, a word at the cut


# The one path


def test_insertion_flows_through_the_same_commands(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_bytes((files / "documents.jsonl").read_bytes())
    model = f"--model {files}/model --prompts world"
    mine = f"mine --documents d.jsonl {model} --out mined --annotate.method insert --annotate.candidates 2"
    assert rationalyst(f"{mine} --annotate.max_rationale_tokens 4") == 0
    out = capsys.readouterr().out
    assert re.search(r"document: inserted +│ +3 ", out) and re.search(r"tokens written +│ +\d+ ", out)
    rows = [json.loads(line) for line in (tmp_path / "mined/annotations.jsonl").read_text().splitlines()]
    places = [place["start"] for place in rows[0]["places"]]
    assert len(places) == 4 and DOCUMENT[places[0] :].startswith("Ben has 1")
    # Nothing that a random model writes in 4 tokens is finished: here it is.
    for row in rows:
        for place in row["places"]:
            for k, candidate in enumerate(place["candidates"]):
                candidate.update(text=f"let us look at number {k}", finish="stop")
    write_lines(tmp_path / "again.jsonl", *rows)
    assert rationalyst("mine --annotations again.jsonl --prompts world --out again") == 0
    scoring = f"{model} --filter.row_length 128 --filter.rows_per_batch 1 --filter.tau -100"
    command = f"filter --triples again/triples.parquet {scoring} --filter.per_place best --out kept.parquet"
    assert rationalyst(command) == 0
    out = capsys.readouterr().out
    assert re.search(r"kept +│ +12 ", out) and re.search(r"reason: not_best +│ +12 ", out)
    assert rationalyst(f"stats --annotations again.jsonl --tokenizer {files}/model --prompts world") == 0
    assert "24 rationales of 3 documents" in capsys.readouterr().out
    assert rationalyst(f"inspect --rationales kept.parquet {scoring} --out seen.jsonl") == 0
    train = (
        f"train --rationales kept.parquet {model} --run_dir trained --train.steps 1 --train.row_length 128"
    )
    assert rationalyst(f"{train} --train.batch_examples 2 --train.microbatch_rows 1") == 0
    assert json.loads((tmp_path / "trained/hf/base.json").read_text()) == {"base": "model"}
