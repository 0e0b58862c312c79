"""A Llama and its tokenizer as one GGUF file that llama.cpp loads, one tensor at a time."""

from pathlib import Path

import numpy as np

from rationalyst_jax.files.whole import whole
from rationalyst_jax.lm.weights.folder import Weights
from rationalyst_jax.lm.weights.generation import with_ends
from rationalyst_jax.lm.weights.gguf import llama, tokenizer
from rationalyst_jax.lm.weights.gguf.container import Value, writing
from rationalyst_jax.lm.weights.gguf.numbers import TYPES, WRITTEN, quantization

# llama.cpp's numbers of what most tensors of a file are.
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
_QUANTIZATION_VERSION = 2  # of ggml's blocks
_EMBED = "model.embed_tokens.weight"


def save_gguf(weights: Weights, folder: Path, target: Path, name: str, dtype: str | None = None) -> None:
    """Writes the weights and the tokenizer in the folder `folder` as the GGUF file `target`.

    Projections and embeddings are written in `dtype` (float32, float16, bfloat16 or q8_0; None: as they are),
    norms in float32, as llama.cpp wants them. `name` is what the file says the model is called. Tokens that
    end a text are the model's, and those of a generation_config.json in `folder`. The file appears when all
    is written. Raises FileNotFoundError for a missing file, and ValueError naming the file, and the tensor or
    key, for what the format has no place for; all but weights beyond a type before anything is written.
    """
    config = with_ends(weights.config, folder)
    kinds = {
        key: "F32" if len(shape) == 1 else WRITTEN[dtype or str(stored)]
        for key, (shape, stored) in weights.tensors.items()
    }
    if "Q8_0" in kinds.values():
        quantization()
    tensors = {}
    for key, (shape, _) in weights.tensors.items():
        block = TYPES[kinds[key]].block
        if shape[-1] % block:
            raise ValueError(f"{target}: {key} has rows of {shape[-1]}, and {dtype} takes {block} at a time")
        tensors[llama.gguf_name(key)] = (shape, kinds[key])
    metadata: dict[str, Value] = {
        "general.architecture": llama.ARCHITECTURE,
        "general.type": "model",
        "general.name": name,
        "general.file_type": _FILE_TYPES[kinds[_EMBED]],
        "general.quantization_version": _QUANTIZATION_VERSION,
        **llama.metadata_of(config),
        **tokenizer.metadata_of(folder, config.vocab_size, config.bos_token_id, config.ends),
    }
    factors = None
    if config.rope_scaling is not None:
        factors = llama.rope_factors(config.head_dim, config.rope_theta, config.rope_scaling)
        tensors[llama.ROPE_FACTORS] = (factors.shape, "F32")
    with whole(target) as unfinished, writing(unfinished, metadata, tensors) as write:
        if factors is not None:
            write(llama.ROPE_FACTORS, 0, factors)
        for key, (shape, stored) in weights.tensors.items():
            tensor = llama.gguf_name(key)
            heads = llama.heads_of(tensor, config)
            try:
                if heads is None:
                    for first, rows in weights.rows(key):
                        write(tensor, first, rows)
                else:
                    whole_tensor = np.empty(shape, stored)
                    for first, rows in weights.rows(key):
                        whole_tensor[first : first + len(rows)] = rows
                    write(tensor, 0, llama.interleaved(whole_tensor, heads))
            except ValueError as error:
                raise ValueError(f"{target}: {error}") from None
