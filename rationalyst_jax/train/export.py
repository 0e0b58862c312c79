"""The trained model leaves as a Hugging Face checkpoint."""

from pathlib import Path

from jax.typing import DTypeLike

from rationalyst_jax.files.whole import write_json
from rationalyst_jax.lm.devices.distributed import is_main
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.model.lora import merge
from rationalyst_jax.lm.weights.hf import copy_tokenizer, save_llama
from rationalyst_jax.lm.weights.open import BASE, model_name


def export(
    model: Llama,
    base: str | Path,
    path: str | Path,
    dtype: DTypeLike | None = None,
    *,
    name: str | None = None,
) -> None:
    """Writes weights (in `dtype`; None: as they are) and config.json into the folder `path`.

    Adapters are merged first. The tokenizer's files and generation_config.json are those of the folder `base`
    that the model was trained from, byte for byte, so that whatever opens the base opens the export. The
    base's `name` (by default its folder's) goes to base.json: its licence may bind what the model writes.
    Where processes are many all must call this; process 0 writes. Raises what `save_llama` raises.
    """
    if model.adapters is not None:
        merge(model)
    if is_main():
        copy_tokenizer(base, path)
        write_json(Path(path) / BASE, {"base": name or model_name(base)})
    save_llama(model, path, dtype=dtype)
