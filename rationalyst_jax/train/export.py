"""The trained model leaves as a Hugging Face checkpoint."""

from pathlib import Path

from jax.typing import DTypeLike
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.distributed import is_main
from rationalyst_jax.lm.hf import save_llama
from rationalyst_jax.lm.llama import Llama


def export(
    model: Llama, tokenizer: PreTrainedTokenizerBase, path: str | Path, dtype: DTypeLike | None = None
) -> None:
    """Writes weights (in `dtype`; None: as they are), config.json and tokenizer files into the folder `path`.

    Where processes are many all must call this; process 0 writes. Raises ValueError when the tokenizer knows
    more tokens than the model, and what `save_llama` raises.
    """
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the model only {model.config.vocab_size}"
        )
    if is_main():
        tokenizer.save_pretrained(path)
    save_llama(model, path, dtype=dtype)
