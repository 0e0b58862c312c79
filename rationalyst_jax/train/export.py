"""The trained model leaves as a Hugging Face checkpoint."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.hf import save_llama
from rationalyst_jax.lm.llama import Llama


def export(model: Llama, tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Writes weights, config.json and tokenizer files into the folder `path`, in the model's dtype.

    Raises ValueError when the tokenizer knows more tokens than the model.
    """
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the model only {model.config.vocab_size}"
        )
    tokenizer.save_pretrained(path)
    save_llama(model, path)
