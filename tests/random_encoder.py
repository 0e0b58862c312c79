"""A small encoder with random weights, and its tokenizer, for tests that need no transformers."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from rationalyst_jax.lm.model.encoder import EncoderConfig
from rationalyst_jax.lm.weights.encoder import stored_shapes

VOCABULARY = ["[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz0123456789.,!?'", "the", "##ing"]
VOCABULARY += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]


def save_tokenizer(folder: Path) -> Path:
    """A WordPiece tokenizer as BERT has, of few pieces, which truncates and pads as MiniLM's file says."""
    pieces = {token: i for i, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def save_encoder(folder: Path) -> Path:
    """A BERT of 128 positions."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder)
    config = {
        "model_type": "bert",
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "layer_norm_eps": 1e-6,
    }
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    shapes = stored_shapes(EncoderConfig.from_hf(config), "bert")
    weights = {
        key: rng.normal("LayerNorm.weight" in key, 0.3, shape).astype(np.float32) for key, shape in shapes
    }
    save_file(weights, folder / "model.safetensors")
    return folder
