"""What a training run is told."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rationalyst_jax.files.ranges import ABOVE_0, AT_LEAST_0, BELOW_1, FRACTION, SEED, require
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.lm.model.settings import LoraConfig, Remat

RECORD = "train.json"  # what a finished run says of itself, in its folder
# Settings of the machine and of how the run is kept: a run may be continued with other ones.
_MACHINE = ("mesh", "microbatch_rows", "remat", "save_every", "validate_every", "keep")


@dataclass(frozen=True)
class TrainConfig:
    """The optimizer's mathematics and the machine's settings; by default the paper's.

    That is AdamW with 2e-5, a cosine, 3 % warm-up, no weight decay, batch 32 and 1024 tokens. Raises
    ValueError naming the key and the value that is out of range.

    Attributes:
        epochs: Number of passes over the training examples.
        steps: Number of optimizer steps of the whole run; by default as many as `epochs` asks for.
        batch_examples: Examples of one optimizer step, counted before those of one document are merged.
        row_length: Tokens of a packed row; longer examples are dropped.
        microbatch_rows: Rows that each row shard computes at the same time; there are replica times fsdp row
            shards. A step adds up as many microbatches as its batch fills, so this setting decides memory
            and speed, not what is learned.
        optimizer: AdamW, or Adafactor without momentum and without scaling by the parameters' size.
        peak_learning_rate: The learning rate after warm-up.
        warmup_fraction: Fraction of the steps over which the learning rate rises from 0, linearly.
        final_fraction: Learning rate after the last step, as a fraction of its peak; it falls along a cosine.
        b1: Decay of AdamW's first moment per step.
        b2: Decay of AdamW's second moment per step.
        eps: Added to the root of AdamW's second moment.
        weight_decay: Decay of matrices and embeddings, in units of the learning rate; norms do not decay.
        clip_norm: Largest global norm of the gradient of the mean loss (nats per target token).
        dtype: Type that the model computes in, and that frozen weights beside adapters are kept in.
        master_dtype: Type that the trained weights are kept in; bfloat16 is rounded stochastically.
        moment_dtype: Type that AdamW's moments are kept in; bfloat16 is rounded stochastically.
        lora: Adapters to train beside frozen weights: their rank, scale and projections. Without it all
            weights are trained.
        remat: What is kept of each layer for the backward pass, which computes the rest again: everything
            ("none"), the outputs of the projections ("dots"), the layer's input ("full"), or that input in
            the host's memory ("offload").
        mesh: How devices divide the work.
        validation_fraction: Fraction of the documents that is held out for validation. The hash of a
            document's id decides.
        seed: Seed of the order of examples, of new adapters and of stochastic rounding.
        save_every: Number of steps from one checkpoint to the next. The last step has a checkpoint too.
        validate_every: Number of steps from one validation to the next. The last step is validated too.
        keep: How many of the latest checkpoints stay. The one with the lowest validation loss stays too.
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
        require("train config", self, AT_LEAST_0, "weight_decay")
        require("train config", self, SEED, "seed")
        if self.steps is not None:
            require("train config", self, AT_LEAST_0, "steps")
        for name in ("epochs", "peak_learning_rate", "eps", "weight_decay"):
            if getattr(self, name) == math.inf:
                raise ValueError(f"train config: {name} must be finite")

    def decides(self) -> dict[str, Any]:
        """The settings that decide what is learned, as JSON values: all but the machine's."""
        return {name: value for name, value in asdict(self).items() if name not in _MACHINE}
