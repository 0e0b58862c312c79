"""Pre-training of the world's base model: the script that made the checkpoint shipped in the package."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import jax
from flax import nnx
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.devices.sharding import created, mesh_of
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.weights.hf import save_llama
from rationalyst_jax.lm.weights.tokenizer import save_tokenizer
from rationalyst_jax.pipeline.config import PretrainConfig
from rationalyst_jax.train.examples import Example
from rationalyst_jax.train.loop import FitResult, fit
from rationalyst_jax.train.store import open_store
from rationalyst_jax.world.pretraining import encode, pretraining_texts
from rationalyst_jax.world.vocabulary import make_tokenizer


def world_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """The shape of the world's models: D 128, 4 layers, 4 heads over 2 key-value heads, F 352, tied."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        rope_theta=10_000.0,
        tie_embeddings=True,
        max_position_embeddings=2048,
        bos_token_id=cast(int, tokenizer.bos_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id),
    )


def pretrain(
    config: PretrainConfig,
    run_dir: Path,
    *,
    progress: Callable[[int, dict[str, float]], None],
    note: Callable[[str], None],
) -> FitResult:
    """Trains a base model from scratch in `run_dir` (resumes there) and exports it to `run_dir/hf`."""
    tokenizer = make_tokenizer()
    train = replace(config.train, seed=config.seed)

    def examples() -> Iterator[Example]:
        for i, pieces in enumerate(pretraining_texts(config.seed, config.texts, config.mixture)):
            yield Example(*encode(tokenizer, pieces), group=str(i))

    texts = {"seed": config.seed, "texts": config.texts, "mixture": asdict(config.mixture)}
    store = open_store(run_dir / "data", texts, examples, train.row_length, train.batch_examples)
    mesh = mesh_of(train.mesh, jax.devices())
    result = fit(
        created(lambda: Llama(world_config(tokenizer), rngs=nnx.Rngs(config.seed)), mesh),
        store,
        train,
        run_dir,
        mesh=mesh,
        starts_from=f"random weights, seed {config.seed}",
        progress=progress,
        note=note,
    )
    save_llama(result.model, run_dir / "hf")
    save_tokenizer(tokenizer, run_dir / "hf")
    return result
