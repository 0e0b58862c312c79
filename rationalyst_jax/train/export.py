"""The trained model leaves as a Hugging Face checkpoint."""

import shutil
from pathlib import Path

from jax.typing import DTypeLike
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.devices.distributed import is_main
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.model.lora import merge
from rationalyst_jax.lm.weights.hf import GENERATION_CONFIG, save_llama


def export(
    model: Llama,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    dtype: DTypeLike | None = None,
    base: Path | None = None,
) -> None:
    """Writes weights (in `dtype`; None: as they are), config.json and tokenizer files into the folder `path`.

    Adapters are merged first. How to generate comes from the `base` that the model was trained from. Where
    processes are many all must call this; process 0 writes. Raises ValueError when the tokenizer knows
    more tokens than the model, and what `save_llama` raises.
    """
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the model only {model.config.vocab_size}"
        )
    if model.adapters is not None:
        merge(model)
    if is_main():
        tokenizer.save_pretrained(path)
        if base is not None and (generation := base / GENERATION_CONFIG).is_file():
            shutil.copyfile(generation, Path(path) / GENERATION_CONFIG)
    save_llama(model, path, dtype=dtype)
