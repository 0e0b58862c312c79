"""Models whose chats are ChatML: their BOS opens every message, or they have none."""

import json
import shutil

import pytest
from cli_files import rationalyst
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.pipeline.score import encode
from rationalyst_jax.prompts.prompt import (
    check_prompts,
    load_demonstrations,
    load_prompts,
    opening_ids,
    render,
)
from rationalyst_jax.roles.role import Role, Sampling
from rationalyst_jax.train.rationales import read_rationales

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FIELDS = {"preceding": "A <|im_start|> in a text.", "rationale": "why", "document": "Hello.", "steps": ""}


@pytest.fixture(params=["<|im_start|>", None], ids=["bos opens messages", "no bos"])
def tokenizer(request, tmp_path):
    """As SmolLM2's, and as Qwen's, opened from a folder."""
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=request.param, eos_token="<|im_end|>")
    made.add_special_tokens({"additional_special_tokens": ["<|endoftext|>", "<|im_start|>"]})
    made.chat_template = TEMPLATE
    made.save_pretrained(tmp_path / "chatml")
    return load_tokenizer(tmp_path / "chatml")


def test_every_prompt_renders_as_the_chat_template_does(tokenizer):
    prompts = load_prompts("llama3").shown(load_demonstrations("gsm8k"))
    check_prompts(tokenizer, prompts, prompts.prompts)
    context, target = render(tokenizer, prompts["rationale"], {"preceding": "So."}, "Because.", close=True)
    chat = [{"role": role, "content": content} for role, content in prompts["rationale"].messages]
    chat[1]["content"] = "So."
    chat[2]["content"] = "Because."
    assert [*context, *target] == tokenizer.apply_chat_template(chat, return_dict=False)
    asked = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, return_dict=False)
    assert [*context] == asked


def test_documents_cannot_open_messages(tokenizer):
    opener = tokenizer.convert_tokens_to_ids("<|im_start|>")
    context, _ = render(tokenizer, load_prompts("llama3")["rationale"], FIELDS, None, False)
    assert context.count(opener) == 3


def test_rationales_become_examples_and_roles_ask(tokenizer, tmp_path):
    row = {"document_id": "d", "preceding": "Two and two.", "rationale": "add them", "kept": True}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    prompts = load_prompts("llama3")
    [example] = read_rationales(tmp_path / "rows.jsonl", tokenizer, prompts)
    target = [t for t, weight in zip(example.tokens, example.weights, strict=True) if weight]
    assert tokenizer.decode(target) == "add them<|im_end|>\n"
    role = Role(None, tokenizer)  # pyright: ignore[reportArgumentType]
    asked = role.to_generate(prompts["rationale"], {"preceding": "Two and two."}, Sampling(5))
    assert example.tokens[: len(asked.context)] == asked.context
    scored = role.to_score(prompts["follow_guided"], FIELDS, "text", ())
    assert tokenizer.decode(scored.continuation) == "text"


def test_plain_text_is_scored_without_what_opens_a_message(tokenizer):
    assert opening_ids(tokenizer) == ()
    request = encode(tokenizer, {"context": "One", "continuation": " two"}, "pairs:1", ())
    assert tokenizer.decode(request.context) == "One"
    with pytest.raises(ValueError, match="pairs:2: nothing stands before the continuation"):
        encode(tokenizer, {"context": "", "continuation": "two"}, "pairs:2", ())
    end_of_text = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    request = encode(tokenizer, {"context": "", "continuation": "two"}, "pairs:2", (end_of_text,))
    assert request.context == (end_of_text,)


@pytest.mark.parametrize(
    "command",
    [
        "mine --documents documents.jsonl --prompts world --out x --model twice",
        "filter --triples filtered.parquet --prompts world --out x --model twice",
        "train --rationales filtered.parquet --prompts world --run_dir x --model twice",
        "reason --config random.yaml --questions questions.jsonl --out x --agent twice",
    ],
)
def test_a_prompt_that_cannot_be_rendered_is_known_before_weights_are_read(
    command, files, tmp_path, monkeypatch, capsys
):
    for name in ("documents.jsonl", "filtered.parquet", "questions.jsonl", "random.yaml"):
        shutil.copy(files / name, tmp_path)
    shutil.copytree(files / "model", tmp_path / "twice")
    (tmp_path / "twice/chat_template.jinja").write_text("{{ bos_token }}{{ bos_token }}" + TEMPLATE)
    (tmp_path / "twice/model.safetensors").write_bytes(b"no weights")
    monkeypatch.chdir(tmp_path)
    assert rationalyst(command) != 0
    said = capsys.readouterr().err
    assert "twice" in said and "begins with" in said and said.count("\n") == 1
