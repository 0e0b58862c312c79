"""generation_config.json: the ends it names end generation, and what is not done here is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from cli_files import small_llama

from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.lm.engine.open import open_engines
from rationalyst_jax.lm.engine.requests import GenerateRequest
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.weights.generation import check_generation, with_ends
from rationalyst_jax.lm.weights.hf import load_config, load_llama, save_llama
from rationalyst_jax.lm.weights.open import open_checkpoint
from rationalyst_jax.world.vocabulary import make_tokenizer

SHAPE = LlamaConfig(50, 16, 24, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, eos_token_id=3)


def write(folder, **keys) -> None:
    (folder / "generation_config.json").write_text(json.dumps(keys))


def test_an_end_that_only_generation_config_names_ends_generation_as_in_transformers(tmp_path):
    """As in the first Llama-3-8B-Instruct, whose turns end in <|eot_id|>."""
    torch = pytest.importorskip("torch", reason="torch is the oracle here")
    tokenizer = make_tokenizer()
    save_llama(small_llama(len(tokenizer), eos_token_id=tokenizer.eos_token_id), tmp_path)
    tokenizer.save_pretrained(tmp_path)
    prompt = (5, 6, 7)

    def theirs() -> list[int]:
        model: Any = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
        ids = torch.tensor([prompt])
        with torch.no_grad():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
            )
        return found[0, len(prompt) :].tolist()

    def ours() -> list[int]:
        [engine] = open_engines([open_checkpoint(tmp_path)], EngineConfig(max_sequences=1, pages=8))
        [[candidate]] = engine.generate([GenerateRequest(prompt, 12, temperature=0)])
        return list(candidate.tokens)

    free = theirs()
    end = next(token for i, token in enumerate(free) if i >= 2 and token not in free[:i])
    assert ours() == free and len(free) > free.index(end) + 1
    write(tmp_path, eos_token_id=[tokenizer.eos_token_id, end])
    assert theirs() == ours() == free[: free.index(end) + 1]


@pytest.mark.parametrize(("named", "ends"), [([3, 9], (3, 9)), (9, (3, 9)), (None, (3,)), ([], (3,))])
def test_no_file_takes_away_an_end_that_another_names(named, ends, tmp_path):
    assert with_ends(SHAPE, tmp_path).ends == (3,)
    write(tmp_path, eos_token_id=named)
    assert with_ends(SHAPE, tmp_path).ends == ends


def test_an_export_says_what_config_json_said(tmp_path):
    save_llama(small_llama(50, eos_token_id=3), tmp_path)
    write(tmp_path, eos_token_id=[3, 9])
    save_llama(load_llama(tmp_path), tmp_path / "again")
    assert load_config(tmp_path / "again").eos_token_id == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"eos_token_id": "</s>"}', "'</s>'"),
        ('{"eos_token_id": [[1]]}', "unhashable|token id"),
        ('{"eos_token_id": 50}', "eos_token_id 50 is beyond the vocabulary of 50"),
    ],
)
def test_a_file_that_names_no_tokens_is_refused_in_one_line(text, message, tmp_path):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        with_ends(SHAPE, tmp_path)
    assert "generation_config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_off_is_no_obstacle(tmp_path):
    check_generation(tmp_path)
    write(tmp_path, repetition_penalty=1, no_repeat_ngram_size=0, stop_strings=[], something_new=None)
    check_generation(tmp_path)
    write(tmp_path, **transformers.GenerationConfig._get_default_generation_params())
    check_generation(tmp_path)


SAMPLING = (
    "do_sample temperature top_k top_p top_h min_p typical_p epsilon_cutoff eta_cutoff renormalize_logits "
    "num_beams num_beam_groups diversity_penalty length_penalty early_stopping num_return_sequences "
    "max_length max_new_tokens max_time"
).split()
HARMLESS = (
    "bos_token_id pad_token_id decoder_start_token_id remove_invalid_values use_cache "
    "cache_implementation cache_config max_cache_len prefill_chunk_size low_memory compile_config "
    "disable_compile continuous_batching_config output_attentions output_hidden_states output_logits "
    "output_scores return_dict_in_generate use_mtp speculation_type is_assistant num_assistant_tokens "
    "num_assistant_tokens_schedule assistant_confidence_threshold assistant_early_exit "
    "assistant_lookbehind target_lookbehind prompt_lookup_num_tokens max_matching_ngram_size "
    "return_legacy_cache transformers_version _from_model_config _commit_hash"
).split()


def test_every_key_of_transformers_is_refused_or_is_known_to_be_passed_over(tmp_path):
    """Also those that a later version adds: they are refused until somebody looks at them."""
    passed = {"eos_token_id", *SAMPLING, *HARMLESS}
    own = set(vars(transformers.GenerationConfig()))
    for key in own | passed:
        write(tmp_path, **{key: 7})
        if key in passed:
            check_generation(tmp_path)
        else:
            with pytest.raises(ValueError, match=rf"generation_config\.json: {key} 7 is not done here"):
                check_generation(tmp_path)


def test_the_docs_name_every_key_of_sampling_that_is_not_obeyed():
    page = Path(__file__).parents[1] / "docs" / "serving.md"
    text = page.read_text(encoding="utf-8")
    assert not [key for key in SAMPLING if f"`{key}`" not in text]


@pytest.mark.parametrize(
    "change",
    [
        {"repetition_penalty": 1.05},
        {"no_repeat_ngram_size": 3},
        {"suppress_tokens": [1]},
        {"begin_suppress_tokens": [1]},
        {"bad_words_ids": [[1]]},
        {"forced_bos_token_id": 1},
        {"forced_eos_token_id": 1},
        {"sequence_bias": [[[1], 2.0]]},
        {"guidance_scale": 2.0},
        {"min_new_tokens": 4},
        {"stop_strings": ["a"]},
        {"penalty_alpha": 0.6},
        {"dola_layers": "high"},
        {"constraints": [1]},
        {"encoder_no_repeat_ngram_size": 2},
        {"assistant_ensemble_weight": 0.5},
        {"forced_bos_token_id": 0},
        {"something_new": 0},
    ],
    ids=str,
)
def test_what_would_change_answers_is_refused_by_name(change, tmp_path):
    write(tmp_path, **change)
    with pytest.raises(ValueError, match=rf"generation_config\.json: {next(iter(change))} ") as caught:
        check_generation(tmp_path)
    assert "\n" not in str(caught.value)
