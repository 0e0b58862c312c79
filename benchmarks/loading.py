"""Checkpoints in and out: `load_llama` onto a mesh and `save_llama`, against transformers on the same files.

A random bfloat16 Llama in files of 1 GB, just written, so in the page cache. Every side runs in a process of
its own. Ours loads onto devices simulated by the CPU, whose memory is this process's memory: what a process
holds at most, less what it held before and less the weights themselves, is what loading or saving costs the
host. Pages of mapped files count in "resident", not in "anonymous". transformers only maps the files, so that
here each of its weights is copied before it counts as loaded.

The limit: copying the weights once, from the page cache.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import arguments, print_json, print_table

MESH = (1, 4, 2)  # replica, fsdp, tensor
FILE_BYTES = 10**9


def write_checkpoint(folder: Path, layers: int) -> None:
    """A Llama as wide as Llama-3.2-3B, its embeddings not tied: 1.6 GB, and 0.2 GB a layer."""
    import numpy as np
    from ml_dtypes import bfloat16
    from safetensors.numpy import save_file

    from rationalyst_jax.lm.model.config import LlamaConfig

    D, F, N, K, H, V = 3072, 8192, 24, 8, 128, 128256
    config = LlamaConfig(V, D, F, layers, N, K, H)
    (folder / "config.json").write_text(json.dumps(config.to_hf() | {"torch_dtype": "bfloat16"}))
    attention = {"q_proj": (N * H, D), "k_proj": (K * H, D), "v_proj": (K * H, D), "o_proj": (D, N * H)}
    mlp = {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{key}.weight": shape for key, shape in attention.items()}
        shapes |= {f"{name}.mlp.{key}.weight": shape for key, shape in mlp.items()}
        shapes |= {f"{name}.{key}_layernorm.weight": (D,) for key in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (D,), "lm_head.weight": (V, D)}
    numbers = np.random.default_rng(0).normal(size=(1 << 24) + 1).astype(bfloat16)
    files: list[list[str]] = [[]]
    for key, shape in shapes.items():
        if sum(2 * math.prod(shapes[other]) for other in files[-1]) + 2 * math.prod(shape) > FILE_BYTES:
            files.append([])
        files[-1].append(key)
    weight_map = {}
    for i, keys in enumerate(files):
        name = f"model-{i + 1:05}-of-{len(files):05}.safetensors"
        save_file({key: np.resize(numbers, shapes[key]) for key in keys}, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(keys, name)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)


def memory() -> tuple[int, int]:
    """Bytes of this process's memory: resident, and the anonymous part of it (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resident, anonymous = (int(lines[name].split()[0]) << 10 for name in ("VmRSS", "RssAnon"))
    return resident, anonymous


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Measures the block: `seconds`, and the highest `resident` and `anonymous` memory, seen every 2 ms."""
    found: dict[str, float] = dict(zip(("resident", "anonymous"), memory(), strict=True))
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            resident, anonymous = memory()
            found["resident"] = max(found["resident"], resident)
            found["anonymous"] = max(found["anonymous"], anonymous)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        yield found
    finally:
        found["seconds"] = time.perf_counter() - start
        done.set()
        watcher.join()


def ours() -> tuple[Callable[[Path], Any], Callable[[Any, Path], None], Callable[[Any], int]]:
    """How to load, save and weigh a model; what is imported and started here is not measured."""
    import jax
    from flax import nnx

    from rationalyst_jax.lm.devices.sharding import make_mesh
    from rationalyst_jax.lm.weights.hf import load_llama, save_llama

    mesh = make_mesh(*MESH, jax.devices())

    def weigh(model: Any) -> int:
        arrays = jax.tree.leaves(nnx.state(model))
        return sum(shard.data.nbytes for array in arrays for shard in array.addressable_shards)

    return (
        lambda folder: load_llama(folder, mesh=mesh),
        lambda model, folder: save_llama(model, folder, FILE_BYTES),
        weigh,
    )


def theirs() -> tuple[Callable[[Path], Any], Callable[[Any, Path], None], Callable[[Any], int]]:
    from transformers import LlamaForCausalLM

    def load(folder: Path) -> LlamaForCausalLM:
        model = LlamaForCausalLM.from_pretrained(folder, dtype="auto", low_cpu_mem_usage=True)
        for weight in model.parameters():
            weight.data = weight.data.clone()  # until something reads them the files are only mapped
        return model

    return (
        load,
        lambda model, folder: model.save_pretrained(folder, max_shard_size=FILE_BYTES),
        lambda model: sum(weight.nbytes for weight in model.parameters()),
    )


def measure(side: str, folder: Path) -> dict[str, Any]:
    """GB/s of loading and saving, and GiB of host memory beside the weights meanwhile."""
    load, save, weigh = {"ours": ours, "theirs": theirs}[side]()
    before = dict(zip(("resident", "anonymous"), memory(), strict=True))
    with watched() as loading:
        model = load(folder)
    with watched() as saving:
        save(model, folder / side)
    weights = weigh(model)
    result: dict[str, Any] = {"weights": weights}
    for name, found in (("load", loading), ("save", saving)):
        result[f"{name}_rate"] = weights / found["seconds"] / 1e9
        for kind, held in before.items():
            result[f"{name}_{kind}"] = (found[kind] - held - weights) / 2**30
    return result


def in_fresh_process(side: str, folder: Path) -> dict[str, Any]:
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    run = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser: ArgumentParser = arguments(__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--side", choices=("ours", "theirs"), help="measure this one in this process")
    parser.add_argument("--folder", type=Path, help="the checkpoint for --side")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.folder)))
        return

    with tempfile.TemporaryDirectory() as name:
        write_checkpoint(Path(name), options.layers)
        found = {side: in_fresh_process(side, Path(name)) for side in ("ours", "theirs")}
    rows = []
    for side, title in (("ours", "ours, 8 devices"), ("theirs", "transformers")):
        for work in ("load", "save"):
            cells = [f"{found[side][f'{work}_{what}']:.2f}" for what in ("rate", "resident", "anonymous")]
            rows.append((title, work, *cells))
        rows.append(None)
    print_table(
        f"{found['theirs']['weights'] / 1e9:.2f} GB of bfloat16 weights, files of 1 GB",
        ("", "", "GB/s", "resident GiB", "anonymous GiB"),
        rows,
        "resident, anonymous: highest memory, less that before and the weights themselves",
    )
    loading, saving = (found["ours"][rate] / found["theirs"][rate] for rate in ("load_rate", "save_rate"))
    print(f"ours / transformers: {loading:.2f} loading, {saving:.2f} saving")
    if options.json:
        extras = {key: value for key, value in found["ours"].items() if key != "weights"}
        print_json("loading", "GB/s", found["ours"]["load_rate"], found["theirs"]["load_rate"], **extras)


if __name__ == "__main__":
    main()
