"""Small checkpoints that fit into a GGUF file, and GGUF files that are not as they should be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from random_model import random_llama
from tokenizers import AddedToken, Tokenizer, models, trainers
from tokenizers import decoders as decoding
from tokenizers import pre_tokenizers as splitting
from transformers import PreTrainedTokenizerFast

from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.weights.gguf.container import read_header, writing
from rationalyst_jax.lm.weights.hf import save_llama
from rationalyst_jax.lm.weights.tokenizer import save_tokenizer

SPECIAL = ["<|begin|>", "<|end|>", "<|turn|>"]
VOCABULARY = 300
CONFIG = LlamaConfig(
    VOCABULARY, 32, 64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, bos_token_id=0, eos_token_id=1
)
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}<|turn|>{% endfor %}"
TEXTS = [
    "A baker fills 12 trays with 1234567 rolls, doesn't he?\n\n  They'Ll sell 70.",
    "def area(w, h):\n\treturn w * h  # ²½ 3.14\r\n",
    "Über die Brücke 🙂 Мост 桥很窄。 ٣٤٥ ",
    "Hi<|turn|>there<|end|> <keep> <|begin|>",
    "   ",
]


def small_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges that cuts texts as SmolLM does; one token is added, not special."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = splitting.Sequence(
        [splitting.Digits(individual_digits=True), splitting.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoding.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=SPECIAL,
        initial_alphabet=splitting.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" the baker sells the rolls, they sell there"] * 9, trainer)
    backend.add_tokens([AddedToken("<keep>", normalized=False)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[1]
    )
    made.chat_template = TEMPLATE
    return made


def save_small(folder: Path, config: LlamaConfig = CONFIG, dtype: Any = jnp.float32, seed: int = 0) -> None:
    """A random model with the small tokenizer as a Hugging Face checkpoint."""
    save_llama(random_llama(config, seed, dtype), folder)
    save_tokenizer(small_tokenizer(), folder)


def rewrite(source: Path, target: Path, change: Callable[[dict, dict[str, np.ndarray]], Any]) -> None:
    """Writes a GGUF file of float32 again, with other metadata and tensors."""
    gguf = read_header(source)
    metadata = dict(gguf.metadata)
    tensors = {name: t.read(0, t.rows).reshape(t.shape) for name, t in gguf.tensors.items()}
    change(metadata, tensors)
    with writing(target, metadata, {name: (t.shape, "F32") for name, t in tensors.items()}) as write:
        for name, tensor in tensors.items():
            write(name, 0, tensor)
