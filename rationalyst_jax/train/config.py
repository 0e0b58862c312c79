"""What a training run is told."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rationalyst_jax.files.ranges import ABOVE_0, AT_LEAST_0, BELOW_1, FRACTION, require
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.lm.model.settings import LoraConfig, Remat

# Settings of the machine and of how the run is kept: a run may be continued with other ones.
_MACHINE = ("mesh", "microbatch_rows", "remat", "save_every", "validate_every", "keep")


@dataclass(frozen=True)
class TrainConfig:
    """By default the paper's: AdamW 2e-5, cosine, 3 % warm-up, no weight decay, batch 32, 1024 tokens.

    Length: `epochs` passes over the examples, or `steps` when given.
    Batch: `batch_examples` sequences per step, before merging, are the mathematics; rows of `row_length`
    tokens, `microbatch_rows` at a time on each device that has rows of its own, are the memory: a step
    accumulates over as many as its batch fills.
    Optimizer: AdamW, or Adafactor (no momentum, update rule without the parameters' scale). Decay applies to
    matrices and embeddings, not to norms; `clip_norm` is the global norm of the gradient of the mean loss
    (nats per target token). The learning rate rises from 0 over `warmup_fraction` of the steps, then falls
    along a cosine to `final_fraction` of its peak.
    Precision: `dtype` is what the model computes in, `master_dtype` what its weights are kept in, and
    `moment_dtype` AdamW's moments; what is kept in bfloat16 is rounded stochastically. Gradients are summed
    in float32.
    Adapters: with `lora` only these are trained, beside weights kept in `dtype`.
    Machine: `mesh` divides the devices; with `remat` the backward pass computes again what it does not keep
    (`lm/model/settings.py::Remat`).
    Every `save_every` and `validate_every` steps, and at the end; the last `keep` checkpoints stay, and the
    one with the lowest validation loss among the steps that are both saved and validated. Raises ValueError
    naming the key and the value that is out of range.
    """

    epochs: float = 1.0
    steps: int | None = None
    batch_examples: int = 32
    row_length: int = 1024
    microbatch_rows: int = 8
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    peak_learning_rate: float = 2e-5
    warmup_fraction: float = 0.03
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    master_dtype: Literal["float32", "bfloat16"] = "float32"
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoraConfig | None = None
    remat: Remat = "none"
    mesh: MeshShape = field(default_factory=MeshShape)
    validation_fraction: float = 0.05
    seed: int = 0
    save_every: int = 500
    validate_every: int = 500
    keep: int = 2

    def __post_init__(self):
        counts = ("batch_examples", "row_length", "microbatch_rows", "save_every", "validate_every", "keep")
        require("train config", self, ABOVE_0, "epochs", *counts, "peak_learning_rate", "eps", "clip_norm")
        require("train config", self, FRACTION, "warmup_fraction", "final_fraction")
        require("train config", self, BELOW_1, "b1", "b2", "validation_fraction")
        require("train config", self, AT_LEAST_0, "weight_decay", "seed")
        if self.steps is not None:
            require("train config", self, AT_LEAST_0, "steps")
        for name in ("epochs", "peak_learning_rate", "eps", "weight_decay"):
            if getattr(self, name) == math.inf:
                raise ValueError(f"train config: {name} must be finite")

    def decides(self) -> dict[str, Any]:
        """The settings that decide what is learned, as JSON values: all but the machine's."""
        return {name: value for name, value in asdict(self).items() if name not in _MACHINE}
