"""The likelihood filter against plain, separate float64 sums."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_model import random_llama
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rationalyst_jax.cli.main import main
from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama, tree_attend
from rationalyst_jax.lm.trees.likelihood import score
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer, marker_ids
from rationalyst_jax.mine import likelihood_filter
from rationalyst_jax.mine.config import FilterConfig
from rationalyst_jax.mine.documents import Document, read_annotations
from rationalyst_jax.mine.likelihood_filter import ScoredTriple, decide, score_triples
from rationalyst_jax.mine.parse import parse
from rationalyst_jax.mine.sharing import measure
from rationalyst_jax.mine.triple_files import read_triple_files
from rationalyst_jax.mine.triples import cut_triples, extract
from rationalyst_jax.prompts.prompt import Prompt, PromptSet, load_prompts, render
from rationalyst_jax.train.rationales import kept_rationales

PROMPTS = PromptSet(
    "1",
    "{question}\n",
    {
        "follow": Prompt("follow", (("assistant", "{preceding}{following}"),)),
        "follow_guided": Prompt(
            "follow_guided", (("assistant", "{preceding}<BOT>{rationale}<EOT>{following}"),)
        ),
    },
)
OUTPUTS = {
    "a": "one two\n<BOT>k q<EOT>three four\nfive <BOT>z<EOT>six\n<BOT>q k z<EOT>two one",
    "b": "three six\n<BOT>q<EOT>one one one\n",
    "c": "one two\nfive <BOT>z z<EOT>four",
}


def make_triples():
    triples = []
    for id, output in OUTPUTS.items():
        text = output
        for rationale in ("k q", "q k z", "z z", "q", "z"):
            text = text.replace(f"<BOT>{rationale}<EOT>", "")
        triples += cut_triples(Document(id, text, "web" if id == "b" else "math"), parse(text, output))
    return triples


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = [*"<s> <BOT> <EOT> one two three four five six k q z".split(), " ", "\n"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="z"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\s"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    tokenizer.add_tokens(["<BOT>", "<EOT>"])
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


def tiny_llama(vocab_size: int) -> Llama:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        tie_embeddings=True,
    )
    return random_llama(config)


@pytest.fixture(scope="module")
def model(tokenizer) -> Llama:
    return tiny_llama(len(tokenizer))


@partial(jax.jit, static_argnames="graph")
def hidden_states(graph, weights, ids_1T):
    T = ids_1T.shape[1]
    hidden_1TD, _ = nnx.merge(graph, weights)(
        ids_1T, jnp.arange(T)[None], tree_attend(T - jnp.arange(T)[None])
    )
    return hidden_1TD[0]


def separate_logprobs(model, context, continuation, suppress=(), length=64):
    """One plain sequence (padded on its right, which nothing before can see), the softmax in float64."""
    ids = np.zeros(length, np.int32)
    n = len(context) + len(continuation)
    ids[:n] = [*context, *continuation]
    hidden_TD = np.asarray(hidden_states(*nnx.split(model), ids[None]), np.float64)
    places = np.arange(len(context), n)
    logits = hidden_TD[places - 1] @ np.asarray(model.output_VD(), np.float64).T
    logits[:, list(suppress)] = -np.inf
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logprobs[np.arange(len(places)), ids[places]]


def separate_gain(model, tokenizer, prompts, triple, weights, suppress=(), length=64):
    fields = {"preceding": triple.preceding, "rationale": triple.rationale}
    totals = []
    for name in ("follow", "follow_guided"):
        pair = render(tokenizer, prompts[name], fields, target=triple.following, close=False)
        logprobs = separate_logprobs(model, *pair, suppress, length)
        totals.append(weights(len(logprobs)) @ logprobs)
    return totals[1] - totals[0]


def score_all(*arguments) -> list[ScoredTriple]:
    """What `score_triples` finds, without the work it took."""
    return score_triples(*arguments)[0]


def gains(rows: Iterable[ScoredTriple]) -> list[float]:
    return [row.gain for row in rows if row.gain is not None]


REDUCTIONS = {
    "decayed_sum": lambda n: 0.9 ** np.arange(n),
    "sum": lambda n: np.ones(n),
    "mean": lambda n: np.ones(n) / n,
    "decayed_mean": lambda n: 0.9 ** np.arange(n) / (0.9 ** np.arange(n)).sum(),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("suppress", [(), ("<BOT>", "<EOT>")])
def test_gains_are_those_of_separate_sequences(model, tokenizer, reduction, suppress, tmp_path):
    triples = make_triples()
    config = FilterConfig(reduction=reduction, suppress=suppress, row_length=64, rows_per_batch=2, block=2)
    told = []
    path = tmp_path / "scores.jsonl"
    scored = score_all(triples, model, tokenizer, PROMPTS, config, path, lambda *counts: told.append(counts))
    assert told[0] == (0, 5, 0) and told[-1][:2] == (5, 5) and told[-1][2] > 0
    for triple, row in zip(triples, scored, strict=True):
        ids = marker_ids(tokenizer, suppress)
        expected = separate_gain(model, tokenizer, PROMPTS, triple, REDUCTIONS[reduction], ids)
        assert row.gain == pytest.approx(expected, abs=1e-4)
        assert row.logprob_with is not None and row.logprob_without is not None
        assert row.gain == row.logprob_with - row.logprob_without
        assert vars(triple).items() <= vars(row).items()
    assert len({round(gain, 3) for gain in gains(scored)}) == 5  # the model does tell them apart


def test_masking_the_markers_changes_gains(model, tokenizer, tmp_path):
    triples = make_triples()
    config = FilterConfig(row_length=64)
    plain, masked = (
        gains(score_all(triples, model, tokenizer, PROMPTS, one, tmp_path / f"{len(one.suppress)}.jsonl"))
        for one in (config, replace(config, suppress=("<BOT>",)))
    )
    assert len(plain) == len(masked) == 5
    assert all(abs(m - p) > 1e-4 for m, p in zip(masked, plain, strict=True))


def test_documents_too_long_for_a_row_are_split_and_triples_too_long_for_one_dropped(
    model, tokenizer, tmp_path
):
    triples = make_triples()
    fields = [{"preceding": t.preceding, "rationale": t.rationale} for t in triples]
    lengths = [
        sum(map(len, render(tokenizer, PROMPTS["follow_guided"], f, target=t.following, close=False)))
        for f, t in zip(fields, triples, strict=True)
    ]
    longest = max(lengths)
    assert lengths.index(longest) == 2 and lengths.count(longest) == 1

    def score_in(row_length: int) -> list[ScoredTriple]:
        path = tmp_path / f"{row_length}.jsonl"
        config = FilterConfig(row_length=row_length, rows_per_batch=2)
        return score_all(triples, model, tokenizer, PROMPTS, config, path)

    wide, split, narrow = score_in(128), score_in(longest), score_in(longest - 1)
    assert gains(split) == pytest.approx(gains(wide), abs=1e-4) and len(gains(split)) == 5
    assert [row.gain is None for row in narrow] == [False, False, True, False, False]
    filtered = decide(narrow, FilterConfig(tau=-1e9))
    assert [row.reason for row in filtered] == ["gain", "gain", "too_long", "gain", "gain"]
    assert [row.kept for row in filtered] == [True, True, False, True, True]


def test_the_work_that_was_done_is_counted(model, tokenizer, tmp_path):
    config = FilterConfig(row_length=64, rows_per_batch=2, block=2)
    _, work = score_triples(make_triples(), model, tokenizer, PROMPTS, config, tmp_path / "scores.jsonl")
    separate = measure(make_triples(), "filter", tokenizer, PROMPTS)
    assert (work.tokens, work.nodes) == (separate.apart, separate.nodes)
    assert work.places % 64 == 0 and work.filled == work.nodes / work.places


def test_the_host_sends_the_next_block_before_it_waits_for_one_and_waits_once_a_block(
    model, tokenizer, tmp_path, monkeypatch
):
    events = []

    def sending(*arguments, **options):
        events.append("send")
        scores = score(*arguments, **options)
        # Between sending and waiting nothing comes back: every number of the result is still on the device.
        assert all(isinstance(array, jax.Array) for array in scores._computed)
        return scores

    def waiting(arrays):
        events.append("wait")
        return [np.asarray(array) for array in arrays]

    monkeypatch.setattr(likelihood_filter, "score", sending)
    monkeypatch.setattr(jax, "device_get", waiting)
    config = FilterConfig(row_length=32, rows_per_batch=1, block=1)
    score_all(make_triples(), model, tokenizer, PROMPTS, config, tmp_path / "scores.jsonl")
    assert events == ["send", "send", "wait", "send", "wait", "wait"]  # three documents, one a block


@pytest.mark.parametrize("left", [0, 1, 2, 2.5])
def test_killed_scoring_continues_with_the_same_bytes(model, tokenizer, tmp_path, left, monkeypatch):
    triples = make_triples()
    config = FilterConfig(row_length=64, block=1)
    path = tmp_path / "scores.jsonl"
    scored = score_all(triples, model, tokenizer, PROMPTS, config, path)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    path.write_bytes(whole[: [0, *ends][int(left)] + (9 if left % 1 else 0)])
    asked, told = [], []

    def counting(model, groups, **options):
        asked.extend(groups)
        return score(model, groups, **options)

    monkeypatch.setattr(likelihood_filter, "score", counting)
    again = score_all(triples, model, tokenizer, PROMPTS, config, path, lambda *counts: told.append(counts))
    assert again == scored and path.read_bytes() == whole
    assert told[-1][:2] == (len(triples), len(triples)) and len(asked) == 3 - int(left)


def test_documents_that_changed_are_scored_again_and_the_others_are_kept(
    model, tokenizer, tmp_path, monkeypatch
):
    triples = make_triples()
    config = FilterConfig(row_length=64, block=1)
    path = tmp_path / "scores.jsonl"
    score_all(triples, model, tokenizer, PROMPTS, config, path)
    mended = [replace(triples[0], rationale="three two"), *triples[1:-1]]
    asked = []

    def counting(model, groups, **options):
        asked.extend(groups)
        return score(model, groups, **options)

    monkeypatch.setattr(likelihood_filter, "score", counting)
    again = score_all(mended, model, tokenizer, PROMPTS, config, path)
    assert len(asked) == 1  # "a" changed, "b" did not, "c" is gone
    assert again == score_all(mended, model, tokenizer, PROMPTS, config, tmp_path / "anew.jsonl")


def test_a_marker_that_is_not_one_token_is_an_error(model, tokenizer, tmp_path):
    config = FilterConfig(suppress=("one two",))
    with pytest.raises(ValueError, match=r"suppress: 'one two' is 3 tokens of this tokenizer, not one"):
        score_all(make_triples(), model, tokenizer, PROMPTS, config, tmp_path / "scores.jsonl")


def test_a_likelihood_that_is_not_finite_is_an_error(model, tokenizer, tmp_path):
    config = FilterConfig(suppress=("three",), row_length=64)
    with pytest.raises(ValueError, match=r"document 'a', rationale 0: log-likelihood .* is -inf without"):
        score_all(make_triples(), model, tokenizer, PROMPTS, config, tmp_path / "scores.jsonl")


def scored(gains_by_source):
    return [
        ScoredTriple(
            f"{source}{i}",
            source,
            0,
            1,
            2,
            "p ",
            "r",
            "f",
            None if g is None else -1.0,
            None if g is None else g - 1,
            g,
        )
        for source, gains in gains_by_source.items()
        for i, g in enumerate(gains)
    ]


def test_each_source_has_its_tau_and_the_threshold_itself_is_kept():
    rows = scored({"web": [0.0, -0.1], "gsm8k": [1.2, 1.1]})
    filtered = decide(rows, FilterConfig(tau_by_source={"gsm8k": 1.2}))
    assert [(row.kept, row.tau, row.reason) for row in filtered] == [
        (True, 0.0, "gain"),
        (False, 0.0, "below_tau"),
        (True, 1.2, "gain"),
        (False, 1.2, "below_tau"),
    ]


def test_keep_all_keeps_all_that_was_scored():
    filtered = decide(scored({"web": [-5.0, 5.0, None]}), FilterConfig(keep="all"))
    assert [row.reason for row in filtered] == ["all", "all", "too_long"]


@pytest.mark.parametrize("keep", ["gain", "all", "random"])
def test_a_smaller_share_is_part_of_a_larger_one_and_of_what_would_be_kept(keep):
    rows = scored({"web": [*np.random.default_rng(2).normal(size=300).tolist(), None]})
    config = FilterConfig(keep=keep)
    whole = [row.kept for row in decide(rows, config)]
    smaller = [False] * len(rows)
    for share in (0.003, 0.1, 0.3, 0.7, 1.0):
        decided = decide(rows, replace(config, share=share))
        kept = [row.kept for row in decided]
        assert sum(kept) == max(1, round(share * sum(whole)))
        assert all(more or not less for less, more in zip(smaller, kept, strict=True))
        left_out = [row.reason == "not_in_share" for row in decided]
        assert [k or out for k, out in zip(kept, left_out, strict=True)] == whole
        smaller = kept
    tenth = replace(config, share=0.1)
    assert decide(rows, tenth) == decide(rows, tenth) != decide(rows, replace(tenth, seed=5))
    drawn = [i for i, row in enumerate(decide(rows, tenth)) if row.kept]
    assert max(drawn) > 150  # of all, not the first


def test_a_share_of_nothing_is_nothing():
    assert not any(row.kept for row in decide(scored({"web": [-1.0, None]}), FilterConfig(share=0.5)))


def test_random_keeps_as_many_of_each_source_and_is_seeded():
    rng = np.random.default_rng(1)
    rows = scored({source: [*rng.normal(size=200).tolist(), None] for source in ("web", "gsm8k")})
    config = FilterConfig(tau=1.0, tau_by_source={"gsm8k": 0.0}, keep="random")
    drawn = decide(rows, config)
    by_gain = decide(rows, replace(config, keep="gain"))
    for source in ("web", "gsm8k"):
        assert (
            sum(r.kept for r in drawn if r.source == source)
            == sum(r.kept for r in by_gain if r.source == source)
            > 0
        )
    assert {r.reason for r in drawn if r.gain is None} == {"too_long"}
    assert {r.reason for r in drawn if r.gain is not None} == {"drawn", "not_drawn"}
    assert np.mean(gains(r for r in drawn if r.kept and r.source == "web")) < 0.5  # lots, not the best ones
    assert drawn == decide(rows, config) != decide(rows, replace(config, seed=1))
    assert decide(by_gain, config) == drawn  # filtered triples can be decided anew


def test_real_triples_are_scored_with_the_real_tokenizer(shared, tmp_path):
    """Two real documents in the chat template, random weights: gains equal those of separate sequences."""
    tokenizer = load_tokenizer(shared / "llama3_tokenizer")
    prompts = load_prompts("llama3")
    model = tiny_llama(len(tokenizer))
    triples = extract(read_annotations(shared / "rationalyst" / "extractor_output.jsonl")[:2]).triples
    config = FilterConfig(rows_per_batch=1)
    scored = score_all(triples, model, tokenizer, prompts, config, tmp_path / "scores.jsonl")
    weights = REDUCTIONS["decayed_sum"]
    expected = [separate_gain(model, tokenizer, prompts, triple, weights, length=1024) for triple in triples]
    assert gains(scored) == pytest.approx(expected, abs=1e-3)
    assert len(scored) == len(triples) == 3


def test_rationales_from_elsewhere_are_filtered_and_trained_on(tmp_path, monkeypatch):
    """The authors' spelling, white space on both sides of a place, no ids; seen through the commands."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"preceeding": "Ann has 3 apples. ", "rationale": "add both", "following": " Ben has 2 more. So 5."},
        {"preceeding": "Ann has 3 apples. Ben has 2 more. ", "rationale": "sum", "following": " So 5."},
        {"preceeding": "At first Dee has 4 pens. ", "rationale": "halve them", "following": "So 2."},
    ]
    write_rows(tmp_path / "theirs.jsonl", rows)
    settings = "--model world --prompts world --filter.row_length 256 --filter.keep all"
    assert main(f"filter --triples theirs.jsonl --out kept.parquet {settings}".split()) == 0
    found = read_triple_files(tmp_path / "kept.parquet")
    assert [(t.document_id, t.index, t.source) for t in found] == [
        ("theirs-1", 0, "theirs"),
        ("theirs-1", 1, "theirs"),
        ("theirs-3", 0, "theirs"),
    ]
    assert [t.following for t in found] == ["Ben has 2 more. So 5.", "So 5.", "So 2."]
    kept = [(row["document_id"], row["rationale"]) for row in kept_rationales(tmp_path / "kept.parquet")]
    assert kept == [(t.document_id, t.rationale) for t in found]


def test_training_says_what_makes_its_rows_of_rationales_from_elsewhere(tmp_path):
    write_rows(tmp_path / "theirs.jsonl", [{"preceeding": "a ", "rationale": "b", "following": "c"}])
    with pytest.raises(
        ValueError, match=r"theirs.jsonl:1: no document_id, preceding \(rationalyst filter makes"
    ):
        list(kept_rationales(tmp_path / "theirs.jsonl"))
