"""A peer that several benchmarks run: CTranslate2, which a CPU's user would choose."""

import tempfile
from typing import Any

import torch

from rationalyst_jax.lm.weights.open import Checkpoint


def ctranslate2_generator(checkpoint: Checkpoint) -> Any:
    """A checkpoint in CTranslate2, with its float32 weights and as many threads as torch takes."""
    import ctranslate2  # not installed by us

    with tempfile.TemporaryDirectory() as place:
        converter: Any = ctranslate2.converters.TransformersConverter(str(checkpoint.path))
        converter.convert(place, force=True)
        return ctranslate2.Generator(
            place, "cpu", compute_type="float32", intra_threads=torch.get_num_threads()
        )
