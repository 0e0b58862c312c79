"""Engines of checkpoints, side by side in the memory of the same devices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from rationalyst_jax.lm.devices.sharding import make_mesh
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.weights.open import Checkpoint


def open_engines(
    checkpoints: Sequence[Checkpoint],
    config: EngineConfig,
    *,
    alternatives: int = 0,
    loaded: Mapping[Path, Llama] | None = None,
) -> list[Engine]:
    """Engines side by side: first all weights, then the caches, which share what memory is left.

    `loaded`: models that are here already, on the mesh and rounded as the config says, by their folders.
    Raises ValueError where there are not as many devices as asked for, or they do not divide a model.
    """
    mesh = engine_mesh(config)
    models = dict(loaded or {})
    for checkpoint in checkpoints:
        if mesh is not None:
            checkpoint.check(mesh)
    for checkpoint in checkpoints:
        if checkpoint.path not in models:
            models[checkpoint.path] = checkpoint.load_for_inference(mesh, int8=config.int8)
    sizes: dict[str, Any] = {
        "max_sequences": config.max_sequences,
        "pages": config.pages,
        "alternatives": alternatives,
    }
    engines: list[Engine] = []
    for checkpoint in checkpoints:
        memory = 0.9 / (len(checkpoints) - 0.9 * len(engines))  # of what the engines before have left
        model = models[checkpoint.path]
        engines.append(Engine(model, checkpoint.tokenizer, **sizes, memory=memory, mesh=mesh))
    return engines


def engine_mesh(config: EngineConfig) -> Mesh | None:
    """The mesh over which engines divide models; None: one device.

    Raises ValueError where there are not as many devices as asked for.
    """
    devices = jax.local_devices()
    if config.tensor > len(devices):
        raise ValueError(f"engine: tensor is {config.tensor}, there are {len(devices)} devices")
    return make_mesh(1, 1, config.tensor, devices[: config.tensor]) if config.tensor > 1 else None
