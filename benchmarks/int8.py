"""Weights in eight bits against the stored ones: bytes, decoding, and what the rounding costs in likelihood.

Decoding: a Llama of 98 million weights whose projections are most of it, tokens/s at batch 1, 8 and 64, with
weights in float32 and in int8, beside transformers in float32. Likelihood: nats a token of documents of the
embedded world by its trained model.

The limit at batch 1: each weight is read once for each token.
"""

import tempfile
from pathlib import Path

import decoding
import jax
import numpy as np
import torch
from flax import nnx
from measure import arguments, print_json, print_table
from transformers import AutoModelForCausalLM

from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import ScoreRequest
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.weights.hf import load_llama, save_llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.world.checkpoint import checkpoint_path
from rationalyst_jax.world.corpus import documents

SHAPE = LlamaConfig(4096, 1024, 2816, 8, 16, 4, 64, max_position_embeddings=512, eos_token_id=1)
PROMPT, NEW = 64, 64


def weight_bytes(model: Llama) -> int:
    return sum(w.size * w.dtype.itemsize for w in jax.tree.leaves(nnx.state(model)))


def nats_a_token(int8: bool) -> float:
    folder = checkpoint_path("world")
    tokenizer = load_tokenizer(folder)
    texts = [tokenizer(row["text"])["input_ids"] for row in documents(1, 200)]
    engine = Engine(load_llama(folder, int8=int8), tokenizer)
    scores = engine.score([ScoreRequest(tuple(ids[:1]), tuple(ids[1:])) for ids in texts])
    return -float(np.concatenate(scores).mean())


def main() -> None:
    options = arguments(__doc__).parse_args()
    tokenizer = load_tokenizer(checkpoint_path("world"))
    rng = np.random.default_rng(0)
    prompts = {b: [tuple(p) for p in rng.integers(4, 4096, (b, PROMPT)).tolist()] for b in (1, 8, 64)}
    rates: dict[str, list[float]] = {}
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        save_llama(Llama(SHAPE, rngs=nnx.Rngs(0)), Path(folder))
        for name, int8 in (("float32", False), ("int8", True)):
            model = load_llama(folder, int8=int8)
            engine = Engine(model, tokenizer)
            engine.warm_up()
            sizes[name] = weight_bytes(model)
            rates[name] = [decoding.ours(engine, some, NEW, (1, 2, 3)) for some in prompts.values()]
        peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        rates["transformers"] = [decoding.by_transformers(peer, some, NEW, 1) for some in prompts.values()]
    print_table(
        f"decoding {NEW} tokens after {PROMPT}",
        ("weights", "MiB", *(f"tokens/s, batch {b}" for b in prompts)),
        [
            (name, f"{sizes[name] / 2**20:.0f}" if name in sizes else "–", *(f"{x:.0f}" for x in rates[name]))
            for name in rates
        ],
    )
    stored, rounded = nats_a_token(False), nats_a_token(True)
    print(f"nats a token of the world's documents: {stored:.5f}, in int8 {rounded:.5f}")
    if options.json:
        ours, theirs = rates["int8"][0], rates["transformers"][0]
        print_json("int8", "tokens/s", ours, theirs, float32=rates["float32"][0], nats=rounded - stored)


if __name__ == "__main__":
    main()
