"""What an accelerator can do at most, by the figures its vendor publishes: none of them is measured here.

TPUs: Google Cloud's page of each generation ("Peak compute per chip (bf16)", "HBM capacity and bandwidth").
Links between chips: the same pages for v5e, v5p and v6e, table 4 of arXiv 2304.01433 for v3 and v4, "A
Domain-Specific Supercomputer for Training Deep Neural Networks" (CACM 63(7), 2020) for v2. GPUs: NVIDIA's
data sheets, without sparsity; NVLink where the board has it, PCI Express elsewhere.

What they write as GB of memory is taken for 2^30 bytes; a device reports a few per cent less, or keeps them.
"""

from dataclasses import dataclass
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device as jax counts them: a whole chip, but on TPU v2 and v3 one of a chip's two cores.

    kinds: what jax calls it (`device_kind`). flops: bfloat16 matrix products, operations a second; float16 on
    GPUs that have no bfloat16. memory: bytes. bandwidth: bytes a second to that memory. interconnect: bytes a
    second that it can receive from others over all its links, while it sends as many. libtpu_flags: what
    libtpu is told where LIBTPU_INIT_ARGS is not set (`launch/worker.sh`, `rationalyst plan`). float32: matrix
    products in that type, operations a second, of GPUs that have no bfloat16.
    """

    kinds: tuple[str, ...]
    flops: float
    memory: int
    bandwidth: float
    interconnect: float
    libtpu_flags: tuple[str, ...] = ()
    float32: float | None = None

    @property
    def peak(self) -> tuple[float, str]:
        """Operations a second in the type that models are to compute in, and this type."""
        return (self.flops, "bfloat16") if self.float32 is None else (self.float32, "float32")


# Weights are gathered while a chip multiplies; v5e does so without flags. Compiled, not timed: so there is no
# limit of vmem here, which a chip would have to be timed with.
_OVERLAPPED_GATHERS = (
    "--xla_tpu_enable_async_collective_fusion=true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "--xla_tpu_overlap_compute_collective_tc=true",
    "--xla_enable_async_all_gather=true",
)

# By the name on the command line.
CHIPS = {
    # Half of a chip with 45 TFLOP/s, 16 GiB at 700 GB/s and 4 links of 496 Gbit/s.
    "v2": Chip(("TPU v2",), 22.5e12, 8 * GIB, 350e9, 124e9),
    # Half of a chip with 123 TFLOP/s, 32 GiB at 900 GB/s and 4 links of 70 GB/s.
    "v3": Chip(("TPU v3",), 61.5e12, 16 * GIB, 450e9, 140e9),
    "v4": Chip(("TPU v4",), 275e12, 32 * GIB, 1200e9, 300e9),
    "v5e": Chip(("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 200e9),
    "v5p": Chip(("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, 600e9, _OVERLAPPED_GATHERS),
    "v6e": Chip(("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1600e9, 400e9, _OVERLAPPED_GATHERS),
    "h200": Chip(("NVIDIA H200",), 989e12, 141 * GIB, 4800e9, 450e9),
    "h100": Chip(("NVIDIA H100 80GB HBM3",), 989e12, 80 * GIB, 3350e9, 450e9),
    "a100-80gb": Chip(("NVIDIA A100-SXM4-80GB",), 312e12, 80 * GIB, 2039e9, 300e9),
    "a100-40gb": Chip(("NVIDIA A100-SXM4-40GB",), 312e12, 40 * GIB, 1555e9, 300e9),
    "l4": Chip(("NVIDIA L4",), 121e12, 24 * GIB, 300e9, 32e9),
    "t4": Chip(("Tesla T4",), 65e12, 16 * GIB, 300e9, 16e9, float32=8.1e12),
    "p100": Chip(("Tesla P100-PCIE-16GB",), 18.7e12, 16 * GIB, 732e9, 16e9, float32=9.3e12),
}


def chip_of(device: Any) -> Chip | None:
    """The chip that a jax device is; None for one that is not in the table."""
    return next((chip for chip in CHIPS.values() if device.device_kind in chip.kinds), None)


def libtpu_init_args(accelerator: str) -> str:
    """What LIBTPU_INIT_ARGS is by default on an accelerator, by Google Cloud's name of it.

    accelerator: a type such as "v5litepod-16" or "v6e-8". One that is not in the table has no flags.
    """
    generation = accelerator.partition("-")[0]
    chip = CHIPS.get("v5e" if generation == "v5litepod" else generation)
    return " ".join(chip.libtpu_flags) if chip else ""
