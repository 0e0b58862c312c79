"""Decoding with a real model on a CPU, against what a user would choose there: transformers, CTranslate2 and
llama.cpp (docs/performance.md says how it is named).

All have the same float32 weights, prompts and threads, by turns, several rounds; the best of each counts.
*XLA* is our engine without the kernels of `lm/cpu`. Greedily, nobody stops early, prompts are left out. The
limit: at each step every weight comes from memory once, and each sequence takes two FLOPs for each.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import decoding
import jax
import numpy as np
import torch
from measure import (
    arguments,
    best_of,
    compilations,
    matmul_peak,
    peak_memory,
    print_json,
    print_table,
)
from peers import ctranslate2_generator
from transformers import AutoModelForCausalLM

from rationalyst_jax.lm.cpu import products
from rationalyst_jax.lm.engine.attention import CHOICE
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.model.flops import forward_flops
from rationalyst_jax.lm.weights.generation import with_ends
from rationalyst_jax.lm.weights.open import Checkpoint, open_checkpoint

Prompts = list[tuple[int, ...]]
# The least bytes for which there are kernels, and what attention is tried.
SETTINGS: dict[str, tuple[int, tuple[str, ...]]] = {
    "ours": (products.LEAST_BYTES, CHOICE["cpu"]),
    "XLA": (2**60, ("xla",)),
}


def contest(
    checkpoint: Checkpoint, prompts: Prompts, new: int, rounds: int, llama_cpp: tuple[str, Path] | None
) -> tuple[dict[str, float], list[list[float]]]:
    """Tokens/s of each contestant, and the seconds of our compilations under each of the SETTINGS."""
    peer: Any = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype="float32")
    ends = with_ends(checkpoint.config, checkpoint.path).ends
    engines: dict[str, Engine] = {}
    compiled: dict[str, list[float]] = {}

    def ours(name: str) -> float:
        products.LEAST_BYTES, CHOICE["cpu"] = SETTINGS[name]
        jax.clear_caches()  # programs were made with the other settings
        if name not in engines:
            model = checkpoint.load_for_inference()
            engines[name] = Engine(model, checkpoint.tokenizer, max_sequences=len(prompts), pages=4096)
        with compilations() as seconds:
            rate = decoding.ours(engines[name], prompts, new, ends)
        compiled.setdefault(name, seconds)
        return rate

    contestants: dict[str, Callable[[], float]] = {name: partial(ours, name) for name in SETTINGS}
    contestants["transformers"] = lambda: decoding.by_transformers(peer, prompts, new, ends[0])
    if find_spec("ctranslate2"):
        contestants["CTranslate2"] = by_ctranslate2(checkpoint, prompts, new, ends)
    if llama_cpp is not None:
        contestants["llama.cpp"] = partial(by_llama_cpp, *llama_cpp, prompts, new)
    best = dict.fromkeys(contestants, 0.0)
    for _ in range(rounds):
        for name, run in contestants.items():
            best[name] = max(best[name], run())
    return best, list(compiled.values())


def read_bytes_per_second(size: int = 2**28) -> float:
    """By all threads, which do nothing but add up."""
    numbers = torch.ones(size // 4)
    seconds, _ = best_of(5, numbers.sum)
    return size / seconds


def by_ctranslate2(
    checkpoint: Checkpoint, prompts: Prompts, new: int, ends: tuple[int, ...]
) -> Callable[[], float]:
    """Measures tokens/s as `decoding.by_transformers` does."""
    generator = ctranslate2_generator(checkpoint)
    spelled = checkpoint.tokenizer.convert_ids_to_tokens
    texts = [spelled(list(prompt)) for prompt in prompts]
    never = [spelled([end]) for end in ends]

    def generate(count: int) -> None:
        results = generator.generate_batch(
            texts,
            max_length=count,
            min_length=count,
            sampling_topk=1,
            include_prompt_in_result=False,
            suppress_sequences=never,
        )
        assert all(len(result.sequences_ids[0]) == count for result in results)

    def rate() -> float:
        whole, _ = best_of(3, lambda: generate(new))
        first, _ = best_of(3, lambda: generate(1))
        return len(prompts) * (new - 1) / (whole - first)

    return rate


def by_llama_cpp(python: str, gguf: Path, prompts: Prompts, new: int) -> float:
    """Tokens/s, as the program llama_cpp.py measures them."""
    program = Path(__file__).with_name("llama_cpp.py")
    command = [python, str(program), str(gguf), str(torch.get_num_threads()), str(new)]
    done = subprocess.run(command, input=json.dumps(prompts), capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a Hugging Face checkpoint")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="sequences at once")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens that are written")
    parser.add_argument("--rounds", type=int, default=3, help="how often each has its turn")
    parser.add_argument("--llama_cpp", help="a Python with llama-cpp-cffi and cffi, for llama.cpp")
    parser.add_argument("--gguf", type=Path, help="the checkpoint in float32 as GGUF, for llama.cpp")
    options = parser.parse_args()
    if (options.llama_cpp is None) != (options.gguf is None):
        parser.error("--llama_cpp and --gguf belong together")
    llama_cpp = None if options.gguf is None else (options.llama_cpp, options.gguf)

    checkpoint = open_checkpoint(options.model)
    weights = forward_flops(checkpoint.config, 1, 0) / 2
    rng = np.random.default_rng(0)
    shown = ["ours", "XLA", "transformers", "CTranslate2", "llama.cpp"]
    rows = []
    for batch in options.batches:
        ids = rng.integers(20, checkpoint.config.vocab_size // 2, (batch, options.prompt))
        prompts = list(map(tuple, ids.tolist()))
        best, compiled = contest(checkpoint, prompts, options.new, options.rounds, llama_cpp)
        bandwidth, flops = read_bytes_per_second(), matmul_peak("float32", 2048)
        limit = min(bandwidth / (4 * weights) * batch, flops / (2 * weights))
        strongest = max(rate for name, rate in best.items() if name not in SETTINGS)
        rows.append(
            [
                str(batch),
                *(f"{best[name]:.1f}" if name in best else "–" for name in shown),
                f"{limit:.0f}",
                f"{best['ours'] / limit:.0%}",
                f"{best['ours'] / strongest:.2f}",
                f"{bandwidth / 1e9:.1f}",
                f"{flops / 1e9:.0f}",
                " / ".join(f"{len(seconds)} in {sum(seconds):.0f} s" for seconds in compiled),
            ]
        )
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)  # a round takes minutes
        if options.json:
            print_json(f"cpu_decoding_{batch}", "tokens/s", best["ours"], strongest)
    print_table(
        f"decoding with {options.model.name}, tokens/s",
        ["sequences", *shown, "limit", "of it", "ratio", "read GB/s", "product GFLOP/s", "compilations"],
        rows,
        f"{torch.get_num_threads()} threads of {os.cpu_count()} cores; {peak_memory():,.0f} MiB at most",
    )


if __name__ == "__main__":
    main()
