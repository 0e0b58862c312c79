"""Engines of checkpoints, side by side in the memory of the same devices."""

from collections.abc import Sequence
from typing import Any

import jax

from rationalyst_jax.lm.devices.sharding import make_mesh
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.weights.open import Checkpoint


def open_engines(
    checkpoints: Sequence[Checkpoint], config: EngineConfig, *, alternatives: int = 0
) -> list[Engine]:
    """Engines side by side: first all weights, then the caches, which share what memory is left.

    Raises ValueError where there are not as many devices as asked for, or they do not divide a model.
    """
    devices = jax.devices()
    if config.tensor > len(devices):
        raise ValueError(f"engine: tensor is {config.tensor}, there are {len(devices)} devices")
    mesh = make_mesh(1, 1, config.tensor, devices[: config.tensor]) if config.tensor > 1 else None
    if mesh is not None:
        for checkpoint in checkpoints:
            checkpoint.check(mesh)
    models = [checkpoint.load_for_inference(mesh, int8=config.int8) for checkpoint in checkpoints]
    sizes: dict[str, Any] = {
        "max_sequences": config.max_sequences,
        "pages": config.pages,
        "alternatives": alternatives,
    }
    engines: list[Engine] = []
    for checkpoint, model in zip(checkpoints, models, strict=True):
        memory = 0.9 / (len(models) - 0.9 * len(engines))  # of what the engines before have left
        engines.append(Engine(model, checkpoint.tokenizer, **sizes, memory=memory, mesh=mesh))
    return engines
