"""A GGUF file as a Hugging Face checkpoint folder, a few rows at a time."""

import math
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerFast

from rationalyst_jax.files.whole import whole_folder, write_json
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.weights.folder import Weights, save_weights
from rationalyst_jax.lm.weights.generation import GENERATION_CONFIG
from rationalyst_jax.lm.weights.gguf.container import Gguf, read_header
from rationalyst_jax.lm.weights.gguf.llama import ROPE_FACTORS, config_of, gguf_name, halved, heads_of
from rationalyst_jax.lm.weights.gguf.numbers import TYPES, WRITTEN, encoded, quantization
from rationalyst_jax.lm.weights.gguf.tokenizer import BOS_ID, ends_of, make_tokenizer
from rationalyst_jax.lm.weights.hf import tensor_shapes
from rationalyst_jax.lm.weights.streaming import CHUNK
from rationalyst_jax.lm.weights.tensor_files import misfits
from rationalyst_jax.lm.weights.tokenizer import save_tokenizer

MOST_SHOWN = 8  # tensors that an error names


def gguf_to_hf(source: Path, target: Path, dtype: str = "float32") -> Weights:
    """Writes the model in a GGUF file as a Hugging Face checkpoint; gives what was written.

    The folder has weights in `dtype` (float32, bfloat16 or float16), config.json, the tokenizer with its chat
    template, and generation_config.json with every token that ends a text. It appears when all is written.
    The host holds a few rows of the weights. Raises FileNotFoundError or ValueError naming the file, and the
    key or tensor, for what is damaged or not read here.
    """
    gguf = read_header(source)
    tokenizer = make_tokenizer(gguf)
    vocabulary = len(gguf.metadata["tokenizer.ggml.tokens"])
    config = config_of(gguf, vocabulary, gguf.metadata.get(BOS_ID), ends_of(gguf))
    tokenizer.model_max_length = config.max_position_embeddings
    weights = weights_of_gguf(gguf, config, dtype)
    with whole_folder(target) as unfinished:
        unfinished.mkdir()
        save_tokenizer(tokenizer, unfinished)
        write_json(unfinished / GENERATION_CONFIG, _generation(config, tokenizer))
        save_weights(weights, unfinished)
    return weights


def weights_of_gguf(gguf: Gguf, config: LlamaConfig, dtype: str) -> Weights:
    """The weights in a file, in `dtype`. Raises ValueError naming missing, extra and misshaped tensors."""
    if config.num_layers > len(gguf.tensors):
        counts = f"llama.block_count is {config.num_layers}, and the file has {len(gguf.tensors)} tensors"
        raise ValueError(f"{gguf.path}: {counts}")
    shapes = tensor_shapes(config)
    wanted = {gguf_name(key): shape for key, shape in shapes.items()}
    found = {name: tensor.shape for name, tensor in gguf.tensors.items() if name != ROPE_FACTORS}
    if problems := list(misfits(wanted, found)):
        shown = "; ".join(problems[:MOST_SHOWN]) + ("; …" if len(problems) > MOST_SHOWN else "")
        raise ValueError(f"{gguf.path}: the tensors do not fit the metadata: {shown}")
    if any(TYPES[tensor.kind].block > 1 for tensor in gguf.tensors.values()):
        quantization()
    to = jnp.dtype(dtype)

    def rows(key: str) -> Iterator[tuple[int, np.ndarray]]:
        name = gguf_name(key)
        tensor = gguf.tensors[name]
        head = config.head_dim if heads_of(name, config) else 1  # rows that belong together
        step = math.ceil(CHUNK / (tensor.shape[-1] * head)) * head
        for first in range(0, tensor.rows, step):
            values = tensor.read(first, min(step, tensor.rows - first))
            if head > 1:
                values = halved(values, len(values) // head)
            try:
                values = encoded(WRITTEN[dtype], values).view(to)
            except ValueError as error:
                raise ValueError(f"{gguf.path}: {name}: {error}") from None
            yield first, values.reshape(-1, *tensor.shape[1:])

    return Weights(config, {key: (shape, to) for key, shape in shapes.items()}, rows)


def _generation(config: LlamaConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, int | list[int]]:
    """generation_config.json: the tokens that begin, end and fill a text."""
    eos = config.eos_token_id
    found = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {key: value for key, value in found.items() if value is not None}
