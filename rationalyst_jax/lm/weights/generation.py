"""generation_config.json: which tokens end a text, and what else a checkpoint asks of whoever generates."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rationalyst_jax.files.whole import read_json
from rationalyst_jax.lm.model.config import LlamaConfig

GENERATION_CONFIG = "generation_config.json"
# What changes a model's answers however it is sampled, with the values that change nothing. Our engine does
# none of it. How to sample (temperature, top_p, top_k, lengths, beams) is for stages and clients to say
# (docs/serving.md).
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (None, []),
    "begin_suppress_tokens": (None, []),
    "encoder_repetition_penalty": (None, 1),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "repetition_penalty": (None, 1),
    "sequence_bias": (None, [], {}),
    "stop_strings": (None, []),
    "suppress_tokens": (None, []),
    "token_healing": (None, False),
    "watermarking_config": (None, {}),
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
    for key, plain in _PLAIN.items():
        if key in raw and raw[key] not in plain:
            raise ValueError(f"{file}: {key} {raw[key]!r} is not done here; remove it to generate without it")
