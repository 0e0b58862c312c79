"""What a training run is told."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rationalyst_jax.files.ranges import ABOVE_0, AT_LEAST_0, BELOW_1, FRACTION, SEED, require
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.lm.model.settings import LoraConfig, Remat

# Settings of the machine and of how the run is kept: a run may be continued with other ones.
_MACHINE = ("mesh", "microbatch_rows", "remat", "save_every", "validate_every", "keep")


@dataclass(frozen=True)
class TrainConfig:
    """The optimizer's mathematics and the machine's settings; by default the paper's.

    That is AdamW with 2e-5, a cosine, 3 % warm-up, no weight decay, batch 32 and 1024 tokens. Raises
    ValueError naming the key and the value that is out of range.

    Attributes:
        epochs: Passes over the training examples.
        steps: Optimizer steps of the whole run; by default as many as `epochs` asks for.
        batch_examples: Examples of one optimizer step, counted before those of one document are merged.
        row_length: Tokens of a packed row; longer examples are dropped.
        microbatch_rows: Rows that each row shard (replica times fsdp of these) computes at once. A step
            accumulates over as many microbatches as its batch fills: this costs memory, not mathematics.
        optimizer: AdamW, or Adafactor without momentum and without scaling by the parameters' size.
        peak_learning_rate: The learning rate after warm-up.
        warmup_fraction: Part of the steps over which the learning rate rises from 0, linearly.
        final_fraction: What the learning rate falls to along a cosine, as a part of its peak.
        b1: Decay of AdamW's first moment per step.
        b2: Decay of AdamW's second moment per step.
        eps: Added to the root of AdamW's second moment.
        weight_decay: Decay of matrices and embeddings, in units of the learning rate; norms do not decay.
        clip_norm: Largest global norm of the gradient of the mean loss (nats per target token).
        dtype: What the model computes in, and what frozen weights beside adapters are kept in.
        master_dtype: What the trained weights are kept in; bfloat16 is rounded stochastically.
        moment_dtype: What AdamW's moments are kept in; bfloat16 is rounded stochastically.
        lora: Train adapters alone, beside frozen weights, with this rank, scale and projections.
        remat: What the backward pass finds of a layer; it computes the rest again. "none", all is kept;
            "dots", the outputs of the projections; "full", a layer's input; "offload", that in the host's
            memory.
        mesh: How devices divide the work.
        validation_fraction: Part of the documents that is held out; the hash of a document's id decides.
        seed: Decides the order of examples, new adapters and stochastic rounding.
        save_every: Steps from one checkpoint to the next; the last step has one too.
        validate_every: Steps from one validation to the next; the last step is validated too.
        keep: How many of the latest checkpoints stay; the one with the lowest validation loss stays too.
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
