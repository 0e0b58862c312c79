"""What mining would take, against what it takes."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from cli_files import rationalyst, small_llama, triple

from rationalyst_jax.lm.devices.chips import CHIPS
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import GenerateRequest, Request, ScoreRequest
from rationalyst_jax.lm.weights.hf import load_llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.mine.annotate import annotate, read_usage
from rationalyst_jax.mine.config import AnnotateConfig, FilterConfig
from rationalyst_jax.mine.documents import Annotation, Document, Insertion
from rationalyst_jax.mine.likelihood_filter import score_triples
from rationalyst_jax.mine.parse import parse
from rationalyst_jax.mine.places import find_places
from rationalyst_jax.plan.config import MiningAssumptions
from rationalyst_jax.plan.mining import (
    CountingEngine,
    Method,
    MiningCost,
    MiningSettings,
    filter_work,
    mining_cost,
)
from rationalyst_jax.prompts.prompt import PromptSet, load_prompts
from rationalyst_jax.roles.role import Model, Role
from rationalyst_jax.roles.usage import Usage
from rationalyst_jax.world.checkpoint import checkpoint_path
from rationalyst_jax.world.corpus import documents as world_documents


@pytest.fixture(scope="module")
def world() -> tuple[Role, PromptSet]:
    base = checkpoint_path("world")
    tokenizer = load_tokenizer(base)
    engine = Engine(load_llama(base), tokenizer, max_sequences=8, prefill_chunks=1)
    return Role(engine, tokenizer), load_prompts("world")


DOCUMENTS = [Document(row["id"], row["text"], row["source"]) for row in world_documents(5, 4)]
INSERT = AnnotateConfig("insert", places="line", candidates=3, max_rationale_tokens=20, block=4)


def estimate(
    method: Method,
    world: tuple[Role, PromptSet],
    annotate: AnnotateConfig = INSERT,
    documents=DOCUMENTS,
    filter: Any = None,
    rationale_tokens: float = 9.5,
    **assumed: float,
) -> MiningCost:
    role, prompts = world
    model = cast(Engine, role.model).model.config
    settings = MiningSettings(annotate, filter or FilterConfig(row_length=512), EngineConfig())
    assumptions = MiningAssumptions(rationale_tokens, **assumed)
    return mining_cost(method, documents, model, role.tokenizer, prompts, settings, assumptions)


def run(world: tuple[Role, PromptSet], config: AnnotateConfig, path: Path) -> tuple[list[Any], Usage]:
    """What mining writes, and what it takes."""
    role, prompts = world
    annotated = annotate(DOCUMENTS, role, prompts, config, path)
    return annotated, read_usage(path)


# ---- Against a run ----


def test_inserting_takes_what_was_planned_with_the_length_that_rationales_have(world, tmp_path):
    annotated, used = run(world, INSERT, tmp_path / "a.jsonl")
    rationales = sum(len(place.candidates) for one in annotated for place in one.places)
    planned = estimate("insert", world, rationale_tokens=used.generated / rationales - 1)
    assert planned.rationales == rationales > 30
    assert (planned.usage.requests, planned.usage.prefilled, planned.usage.cached) == (
        used.requests,
        used.prefilled,
        used.cached,
    )
    assert abs(planned.usage.generated - used.generated) <= INSERT.candidates
    assert planned.usage.flops == pytest.approx(used.flops, rel=2e-3)


def test_copying_takes_what_was_planned_with_the_rationales_that_copies_have(world, tmp_path):
    role, _ = world
    annotated, used = run(world, AnnotateConfig(length_margin=80), tmp_path / "a.jsonl")
    assert all(isinstance(one, Annotation) and one.finish == "end" for one in annotated)
    written = [r.text for one in annotated for r in parse(one.document.text, one.output).rationales]
    places = sum(len(find_places(one.text, "line")) for one in DOCUMENTS)
    planned = estimate(
        "copy",
        world,
        rationale_tokens=sum(map(role.count_tokens, written)) / len(written),
        rationales_per_place=len(written) / places,
    )
    assert planned.rationales == len(written)
    assert planned.usage.prefilled == used.prefilled
    assert abs(planned.usage.generated - used.generated) <= 2
    assert planned.usage.flops == pytest.approx(used.flops, rel=5e-3)


def test_surprise_is_measured_for_as_many_words_as_planned(world, tmp_path):
    config = AnnotateConfig("insert", places="line", most_places=1, max_rationale_tokens=8)
    annotated, used = run(world, config, tmp_path / "a.jsonl")
    planned = estimate("insert", world, config, rationale_tokens=5)
    assert planned.usage.scored == used.scored > 0
    assert planned.usage.requests == used.requests
    assert planned.rationales == sum(len(one.places) for one in annotated if isinstance(one, Insertion))


def test_the_filter_takes_the_work_that_was_planned(tmp_path):
    tokenizer = load_tokenizer(checkpoint_path("world"))
    model = small_llama(len(tokenizer))
    triples = [triple(name, i, 0.0) for name in ("a", "b", "c") for i in range(4)]
    long = replace(triple("c", 4, 0.0), rationale="let us look at " * 20)
    documents = [triples[:4], triples[4:8], [*triples[8:], long]]
    prompts = load_prompts("world")
    config = FilterConfig(row_length=40, rows_per_batch=2, block=2)
    every = [one for document in documents for one in document]
    scored, work = score_triples(every, model, tokenizer, prompts, config, tmp_path / "scores.jsonl")
    unscored, planned = filter_work(documents, model.config, tokenizer, prompts, config)
    assert planned == work
    assert unscored == sum(one.gain is None for one in scored) == 1


def test_prefixes_are_shared_as_an_engine_shares_them(world):
    """Requests of both kinds with common beginnings, two rounds of them, the second after `forget`."""
    engine = cast(Engine, world[0].model)
    lots = np.random.default_rng(0)
    beginnings = [tuple(lots.integers(2, 400, 60).tolist()) for _ in range(3)]
    counting = CountingEngine(engine.model.config, EngineConfig())
    for _ in range(2):
        asked: list[Request] = []
        for number in range(20):
            context = beginnings[number % 3][: int(lots.integers(1, 60))]
            tokens = int(lots.integers(1, 25))
            if number % 3 == 0:  # seven, so there is a slot for each
                asked.append(GenerateRequest(context, tokens, seed=number))
            else:
                asked.append(ScoreRequest(context, beginnings[number % 2][:tokens]))
        computed, counted = (_taken(side, asked) for side in (engine, counting))
        for request, a, b in zip(asked, computed, counted, strict=True):
            if (
                isinstance(request, GenerateRequest) and a.generated < request.max_tokens
            ):  # the model ended it
                a = replace(a, generated=b.generated, flops=b.flops)
            assert a == b, request
        assert sum(one.cached for one in counted) > 100


def _taken(side: Model, asked: Sequence[Request]) -> list[Usage]:
    side.forget()
    handles = [side.submit(request) for request in asked]
    while side.busy:
        side.step()
    return [Usage.of(side, handle) for handle in handles]


# ---- What is assumed ----


def test_copies_have_rationales_at_a_share_of_the_places(world):
    places = sum(len(find_places(one.text, "line")) for one in DOCUMENTS)
    counts = [estimate("copy", world, rationales_per_place=share).rationales for share in (0, 0.5, 1)]
    assert counts == [0, pytest.approx(places / 2, abs=1), places]
    none = estimate("copy", world, rationales_per_place=0)
    assert none.nodes == none.filter_flops == 0
    role, _ = world
    assert none.usage.generated == sum(role.count_tokens(one.text) + 1 for one in DOCUMENTS)


@pytest.mark.parametrize("mean", [1, 1.4, 2.5, 7.513])
def test_rationales_have_the_mean_length(world, mean):
    cost = estimate("insert", world, rationale_tokens=mean)
    assert cost.usage.generated == pytest.approx((mean + 1) * cost.rationales, abs=INSERT.candidates)


def test_documents_that_are_too_long_take_nothing(world):
    role, _ = world
    lengths = sorted(role.count_tokens(one.text) for one in DOCUMENTS)
    config = replace(INSERT, max_document_tokens=lengths[2])
    for method in ("copy", "insert"):
        cost = estimate(method, world, config)
        short = [one for one in DOCUMENTS if role.count_tokens(one.text) <= lengths[2]]
        assert cost.too_long == len(DOCUMENTS) - len(short) > 0
        assert cost.usage == estimate(method, world, config, documents=short).usage


def test_rationales_that_do_not_fit_in_the_filters_rows_are_counted(world):
    cost = estimate("insert", world, filter=FilterConfig(row_length=60))
    assert 0 < cost.too_long_to_score < cost.rationales


def test_many_documents_take_so_many_times_as_much(world):
    cost = estimate("insert", world)
    assert cost.scaled(1) == cost
    assert cost.scaled(1000).flops == 1000 * cost.flops
    assert cost.scaled(1000).usage.prefilled == 1000 * cost.usage.prefilled


# ---- The command ----

MINE = "plan --stage mine --model world --prompts world --documents documents.jsonl"


@pytest.fixture
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    rows = [{"id": one.id, "text": one.text} for one in DOCUMENTS]
    Path("documents.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    Path("empty.jsonl").write_text("")
    Path("bad.jsonl").write_text('{"text": "One.\\nTwo."}\n{"text": 3}\n')


def columns(out: str) -> dict[str, list[float]]:
    """The numbers of the rows of a table."""
    rows = re.findall(r"^ (\S.*?)((?: +[\d.,e+-]+){2}) *$", out, re.M)
    return {name: [float(n.replace(",", "")) for n in numbers.split()] for name, numbers in rows}


@pytest.mark.usefixtures("here")
def test_both_methods_are_told_side_by_side_as_an_estimate(world, capsys):
    given = "--annotate.method insert --annotate.places line --annotate.candidates 3 --annotate.block 4"
    assumed = "--assume.rationale_tokens 9.5 --assume.rationales_per_place 0.8 --assume.utilisation 0.25"
    options = f"{given} --annotate.max_rationale_tokens 20 {assumed} --filter.row_length 512"
    assert rationalyst(f"{MINE} {options} --chip v5e --chips 4 --count 600") == 0
    out = capsys.readouterr().out
    assert "mining 600 documents, estimated from 4" in out
    told = columns(out)
    costs = [estimate(method, world, rationales_per_place=0.8).scaled(150) for method in ("copy", "insert")]
    assert told["tokens written"] == [cost.usage.generated for cost in costs]
    assert told["context tokens computed"] == [cost.usage.prefilled for cost in costs]
    assert told["tokens of the filter, as trees"] == [cost.nodes for cost in costs]
    assert told["annotating, GFLOP"] == [pytest.approx(cost.usage.flops / 1e9, rel=1e-3) for cost in costs]
    hours = [cost.flops / (4 * CHIPS["v5e"].flops * 0.25) / 3600 for cost in costs]
    assert told["both, hours on 4 x v5e"] == pytest.approx(hours, rel=1e-3)
    for words in (
        "An estimate. Assumed:",
        "a rationale has 9.5 tokens",
        "rationales at 80% of its places (line)",
        "utilisation: 25% of 197 TFLOP/s a chip (bfloat16)",
    ):
        assert words in out


@pytest.mark.usefixtures("here")
def test_without_chips_no_hours_are_told_and_without_a_count_the_sample_is_counted(capsys):
    assert rationalyst(MINE) == 0
    out = capsys.readouterr().out
    assert "mining 4 documents, estimated from 4" in out
    assert "hours" not in out and "utilisation" not in out


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        (MINE.replace(" --documents documents.jsonl", ""), 2, "needs a sample of --documents, and --prompts"),
        (MINE.replace(" --prompts world", ""), 2, "needs a sample of --documents, and --prompts"),
        (f"{MINE} --topology v5e:1x1", 2, "--topology is for train and filter: mine has --chip"),
        (MINE.replace("documents.jsonl", "nowhere.jsonl"), 1, "nowhere.jsonl: No such file"),
        (MINE.replace("documents.jsonl", "empty.jsonl"), 1, "empty.jsonl: holds no rows"),
        (MINE.replace("documents.jsonl", "bad.jsonl"), 1, "bad.jsonl:2: 'text'"),
        (MINE.replace("--model world", "--model llama3-8b"), 1, "llama3-8b: no such checkpoint folder"),
        (MINE.replace("--prompts world", "--prompts nothing"), 1, "no prompts named 'nothing'"),
        (f"{MINE} --chip v7", 1, "--chip v7: must be one of v2, v3, v4, v5e"),
        (f"{MINE} --chip v5e --chips 0", 2, "chips"),
        (f"{MINE} --count 0", 2, "count"),
        (f"{MINE} --slices 2", 2, "--slices is for train and filter"),
        ("plan --model llama3-8b --topology v5e:1x1 --chip h100", 2, "--chip is for --stage mine"),
        ("plan --model llama3-8b --topology v5e:1x1 --count 9", 2, "--count is for --stage mine"),
        (f"{MINE} --assume.utilisation 0", 2, "assume: utilisation must be above 0 and at most 1, got 0"),
        (f"{MINE} --assume.utilisation 1.5", 2, "utilisation must be above 0 and at most 1, got 1.5"),
        (f"{MINE} --assume.rationales_per_place 2", 2, "rationales_per_place must be between 0 and 1, got 2"),
        (f"{MINE} --assume.rationale_tokens 0", 2, "rationale_tokens must be at least 1 and finite, got 0"),
        (
            f"{MINE} --assume.rationale_tokens 200",
            1,
            "assume: rationale_tokens is 200, but annotate.max_rationale_tokens 128",
        ),
        (f"{MINE} --annotate.places line", 2, "places is 'line', but method copy inserts nothing"),
    ],
)
def test_bad_input_is_one_line(command, status, says, capsys):
    assert rationalyst(command) == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error
