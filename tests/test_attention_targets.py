"""The attention kernels, compiled for machines that are not there: compiled, not run."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rationalyst_jax.lm.attention import tree_attention
from rationalyst_jax.lm.devices.sharding import make_mesh

pytestmark = pytest.mark.aot
TOPOLOGIES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v5p": "v5p:2x2x1"}


@pytest.mark.parametrize("T", [384, 2048, 8192])
@pytest.mark.parametrize(("H", "dtype"), [(64, "bfloat16"), (128, "bfloat16"), (128, "float32")])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_tpu_kernels_compile_forward_and_backward(tpu_topology, name, H, dtype, T, heads=(32, 8)):
    B, (N, K) = 1, heads
    mesh = make_mesh(1, 1, 1, tpu_topology(TOPOLOGIES[name])[:1])
    sharding = NamedSharding(mesh, PartitionSpec())
    q, k, v = (jax.ShapeDtypeStruct((B, T, heads, H), dtype, sharding=sharding) for heads in (N, K, K))
    size = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=sharding)

    def loss(q, k, v, size):
        out = tree_attention(q, k, v, size, implementation="pallas_tpu", mesh=mesh)
        return out.astype(jnp.float32).sum()

    compiled = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(q, k, v, size).compile()
    assert str(compiled.as_text()).count("tpu_custom_call") == 3  # forward, dq, dk and dv
    # Nothing of size T² exists: scores of one head alone would be T * T * 4 bytes.
    arrays = 4 * B * T * (2 * N + 2 * K) * H * jnp.dtype(dtype).itemsize
    memory = compiled.memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < arrays + 4 * 2**20


@pytest.mark.parametrize("heads", [(64, 8), (16, 1), (12, 1)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_tpu_kernels_compile_for_large_groups_of_heads(tpu_topology, dtype, heads):
    test_the_tpu_kernels_compile_forward_and_backward(tpu_topology, "v5e", 128, dtype, 2048, heads)


COMPILE = """
import subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.backends import nvidia
from triton.compiler import ASTSource
from rationalyst_jax.lm.attention import triton as ours

capability, H, dtype = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
meta = {"T": 2048, "N": 32, "K": 8, "H": H, **dict(zip("QS", ours.block_sizes(H)))}
types = dict.fromkeys(("size_ptr", "count_ptr", "block_ptr"), "*i32")
types |= dict.fromkeys(("lse_ptr", "delta_ptr"), "*fp32") | dict.fromkeys(meta, "constexpr")
for kernel in (ours.forward_kernel, ours.query_gradient_kernel, ours.key_value_gradient_kernel):
    signature = {name: types.get(name, "*" + dtype) for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=meta)
    options = {"num_warps": ours.warps(H), "num_stages": 2}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True).stdout
    print(kernel.__name__, compiled.metadata.shared, usage.replace("\\n", " "))
"""


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("H", [64, 128])
def test_the_triton_kernels_compile_within_registers_and_shared_memory(capability, H):
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE, str(capability), str(H), "bf16"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        shared = int(line.split()[1])
        stack = int(re.search(r"STACK:(\d+)", line)[1])  # pyright: ignore[reportOptionalSubscript]
        assert shared <= 163 * 1024 and stack == 0, line  # bytes a block may have on sm_80; no spills
