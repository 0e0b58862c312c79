"""The seven projections of a layer: all that code needs to know of one, in one table. Imports no jax.

M rows of input (B and T as one axis), R rank; the other letters as in `lm/model/llama.py`.
"""

from dataclasses import dataclass
from typing import Literal

ProjectionName = Literal["q", "k", "v", "o", "gate", "up", "down"]


@dataclass(frozen=True)
class Projection:
    """One projection.

    parameter: the array of `Layers`, `[L, *axes]`. module: what Hugging Face calls it within a layer.
    axes: the logical names of its axes, layer axis aside; the first `inputs` of them are contracted.
    product: the einsum of the projection. low, high: those of its adapter's two matrices.
    """

    parameter: str
    module: str
    axes: tuple[str, ...]
    inputs: int
    product: str
    low: str
    high: str


# In the order of a layer's own computation.
# fmt: off
PROJECTIONS: dict[ProjectionName, Projection] = {
    "q": Projection("q_DNH", "self_attn.q_proj", ("embed", "heads", "head"), 1,
                    product="MD,DNH->MNH", low="MD,DR->MR", high="MR,RNH->MNH"),
    "k": Projection("k_DKH", "self_attn.k_proj", ("embed", "kv_heads", "head"), 1,
                    product="MD,DKH->MKH", low="MD,DR->MR", high="MR,RKH->MKH"),
    "v": Projection("v_DKH", "self_attn.v_proj", ("embed", "kv_heads", "head"), 1,
                    product="MD,DKH->MKH", low="MD,DR->MR", high="MR,RKH->MKH"),
    "o": Projection("o_NHD", "self_attn.o_proj", ("heads", "head", "embed"), 2,
                    product="MNH,NHD->MD", low="MNH,NHR->MR", high="MR,RD->MD"),
    "gate": Projection("gate_DF", "mlp.gate_proj", ("embed", "mlp"), 1,
                       product="MD,DF->MF", low="MD,DR->MR", high="MR,RF->MF"),
    "up": Projection("up_DF", "mlp.up_proj", ("embed", "mlp"), 1,
                     product="MD,DF->MF", low="MD,DR->MR", high="MR,RF->MF"),
    "down": Projection("down_FD", "mlp.down_proj", ("mlp", "embed"), 1,
                       product="MF,FD->MD", low="MF,FR->MR", high="MR,RD->MD"),
}
# fmt: on
