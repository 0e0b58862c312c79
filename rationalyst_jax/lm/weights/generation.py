"""generation_config.json: which tokens end a text, and what else a checkpoint asks of whoever generates."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rationalyst_jax.files.whole import read_json
from rationalyst_jax.lm.model.config import LlamaConfig

GENERATION_CONFIG = "generation_config.json"
# Every key of the file is one of four, so that what a later version of transformers adds is refused, not
# passed over. It is obeyed ...
_OBEYED = {"eos_token_id"}
# ... or says what no answer depends on: tokens that have no part in one, how transformers computes, and what
# it returns beside it ...
_HARMLESS = {
    "_commit_hash",
    "_from_model_config",
    "assistant_confidence_threshold",  # of models that draft; what they draft is verified
    "assistant_early_exit",
    "assistant_lookbehind",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",  # beside an encoder
    "disable_compile",
    "is_assistant",
    "low_memory",
    "max_cache_len",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "remove_invalid_values",  # logits that are no numbers
    "return_dict_in_generate",
    "return_legacy_cache",
    "speculation_type",
    "target_lookbehind",
    "transformers_version",
    "use_cache",
    "use_mtp",
}
# ... or how to sample, which is for stages and clients to say (docs/serving.md) ...
_SAMPLING = {
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "epsilon_cutoff",
    "eta_cutoff",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "max_time",
    "min_p",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "renormalize_logits",
    "temperature",
    "top_h",
    "top_k",
    "top_p",
    "typical_p",
}
# ... or it changes answers however they are sampled, which is not done here: then it must be off, that is
# None, False, an empty list or object, or this.
_OFF = {
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "penalty_alpha": 0,
    "repetition_penalty": 1,
}


def with_ends(config: LlamaConfig, path: Path) -> LlamaConfig:
    """`config` with the tokens that end a text by the generation_config.json of checkpoint folder `path` too.

    transformers' `generate` takes those of the file alone; here no file takes away an end that another names.
    Raises ValueError naming the file for what is not JSON, or no token id of the model.
    """
    file = path / GENERATION_CONFIG
    if not file.is_file() or (found := read_json(file).get("eos_token_id")) is None:
        return config
    named = found if isinstance(found, list) else [found]
    try:
        config = replace(config, eos_token_id=tuple(dict.fromkeys((*config.ends, *named))))
    except (TypeError, ValueError) as error:  # TypeError: a list within the list
        raise ValueError(f"{file}: {error}") from error
    if beyond := [end for end in named if end >= config.vocab_size]:
        raise ValueError(f"{file}: eos_token_id {beyond[0]} is beyond the vocabulary of {config.vocab_size}")
    return config


def check_generation(path: Path) -> None:
    """Raises ValueError where generation_config.json asks for what changes answers and is not done here."""
    file = path / GENERATION_CONFIG
    raw = read_json(file) if file.is_file() else {}
    for key, value in raw.items():
        if key not in _HARMLESS | _SAMPLING | _OBEYED and not _off(key, value):
            raise ValueError(f"{file}: {key} {value!r} is not done here; remove it to generate without it")


def _off(key: str, value: Any) -> bool:
    if key in _OFF and value == _OFF[key]:
        return True
    return value is None or value is False or value in ([], {})
