"""Tokenizers go to GGUF and come back with the same tokens; those that have no place there are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_files import rationalyst
from gguf_files import TEXTS, VOCABULARY, save_small
from random_model import random_llama
from test_gguf import assert_same_tokenizer, assert_same_weights, refused

from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.weights.gguf.container import read_header, writing
from rationalyst_jax.lm.weights.gguf.tokenizer import PRE_TOKENIZERS, make_tokenizer
from rationalyst_jax.lm.weights.hf import load_config, save_llama


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change_tokenizer(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "tokenizer.json"
    described = json.loads(file.read_text())
    change(described)
    file.write_text(json.dumps(described))


def as_llama3(described: dict[str, Any]) -> None:
    """Makes the small tokenizer cut texts as Llama 3 does, and open each with BOS."""
    steps = json.loads(json.dumps(PRE_TOKENIZERS["llama-bpe"].steps))
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    described["model"]["ignore_merges"] = True
    bos = {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}
    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, bos, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}},
    }


def test_a_text_begins_with_bos_where_the_tokenizer_puts_it(here):
    save_small(here / "model")
    change_tokenizer(here / "model", as_llama3)
    assert rationalyst("convert --source model --target model.gguf") == 0
    metadata = read_header(here / "model.gguf").metadata
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.pre"] == "llama-bpe"
    assert rationalyst("convert --source model.gguf --target back") == 0
    assert_same_tokenizer(here / "back", here / "model", TEXTS)


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_where_a_file_does_not_say_bos_is_as_llama_cpp_has_it(pre, here):
    save_small(here / "model")
    assert rationalyst("convert --source model --target model.gguf") == 0
    metadata = {**read_header(here / "model.gguf").metadata, "tokenizer.ggml.pre": pre}
    del metadata["tokenizer.ggml.add_bos_token"]
    with writing(here / "silent.gguf", metadata, {}):
        pass
    ids = make_tokenizer(read_header(here / "silent.gguf"))("a")["input_ids"]
    assert (ids[0] == 0) == (pre == "llama-bpe")


def test_the_real_llama_3_tokenizer_comes_back_with_the_same_tokens(shared, here):
    config = LlamaConfig(
        128256, 8, 16, 1, 1, 1, head_dim=8, bos_token_id=128000, eos_token_id=(128001, 128009)
    )
    save_llama(random_llama(config), here / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(shared / "llama3_tokenizer" / name, here / "model" / name)
    assert rationalyst("convert --source model --target model.gguf") == 0
    metadata = read_header(here / "model.gguf").metadata
    assert metadata["tokenizer.ggml.pre"] == "llama-bpe"
    assert metadata["tokenizer.ggml.eos_token_id"] == 128009  # its tokenizer's
    assert metadata["tokenizer.ggml.eot_token_id"] == 128001
    assert rationalyst("convert --source model.gguf --target back") == 0
    assert_same_weights(here / "back", here / "model")
    assert load_config("back") == config
    golden = (shared / "llama3_tokenizer" / "golden_encodings.jsonl").read_text().strip().split("\n")
    rows = (shared / "pile_like" / "mixed.jsonl").read_text().split("\n")[:100]
    texts = [json.loads(row)["text"] for row in golden] + [json.loads(row)["text"][:500] for row in rows]
    chat = "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|reserved_special_token_7|>"
    assert_same_tokenizer(here / "back", here / "model", [*TEXTS, chat, *texts])


REFUSED = {
    "a normalizer {'type': 'NFC'} is not supported": lambda t: t.update(normalizer={"type": "NFC"}),
    "dropout 0.5 is not supported": lambda t: t["model"].update(dropout=0.5),
    "ignore_merges must be False beside the rule smollm": lambda t: t["model"].update(ignore_merges=True),
    "pre_tokenizer: none of those known here (llama-bpe, smollm)": lambda t: t.update(
        pre_tokenizer=t["pre_tokenizer"]["pretokenizers"][1]
    ),
    "the token '<keep>' takes spaces with it": lambda t: t["added_tokens"][-1].update(lstrip=True),
    "around a text, where a GGUF file has BOS alone": lambda t: (
        as_llama3(t),
        t["post_processor"]["single"].append({"SpecialToken": {"id": "<|end|>", "type_id": 0}}),
        t["post_processor"]["special_tokens"].update(
            {"<|end|>": {"id": "<|end|>", "ids": [1], "tokens": ["<|end|>"]}}
        ),
    ),
}


@pytest.mark.parametrize("needle", REFUSED)
def test_a_tokenizer_that_has_no_place_is_refused_by_name(needle, here, capsys):
    save_small(here / "model")
    change_tokenizer(here / "model", REFUSED[needle])
    error = refused("convert --source model --target x.gguf", capsys, "x")
    assert "model/tokenizer.json: " in error and needle in error


def test_the_world_s_tokenizer_is_refused(files, here, capsys):
    error = refused(f"convert --source {files}/model --target x.gguf", capsys, "x")
    assert "a tokenizer of type Unigram, only byte-level BPE goes into a GGUF file" in error


ENDS = {
    "no token ends a text (eos_token_id)": None,
    "eos_token_id [1, 2, 3]: a GGUF file has no place": (1, 2, 3),
    f"eos_token_id 400 is beyond the vocabulary of {VOCABULARY}": 400,
}


@pytest.mark.parametrize("needle", ENDS)
def test_ends_that_have_no_place_are_refused(needle, here, capsys):
    save_small(here / "model", LlamaConfig(VOCABULARY, 32, 64, 1, 2, 1, 8, eos_token_id=ENDS[needle]))
    assert needle in refused("convert --source model --target x.gguf", capsys, "x")


def test_a_folder_without_a_tokenizer_is_told_to_name_one(here, capsys):
    save_small(here / "model")
    (here / "model" / "tokenizer.json").rename(here / "tokenizer.json")
    error = refused("convert --source model --target x.gguf", capsys, "x")
    assert "model: no tokenizer.json, which a GGUF file needs: give --tokenizer" in error
