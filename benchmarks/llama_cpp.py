"""llama.cpp decoding a GGUF file on a CPU, tokens/s: a program of its own, which cpu_peers.py starts.

    PYTHON benchmarks/llama_cpp.py FILE.gguf THREADS NEW < prompts.json

PYTHON is one with the packages llama-cpp-cffi and cffi; nothing of this project is imported. The prompts are
token ids, all of one length. Their sequences are decoded together, greedily, and nobody stops early. The
prompts' time is left out. The best of three turns counts, with keys and values in float32 or in float16 under
flash attention, whichever is faster.
"""

import json
import sys
import time
from typing import Any

from llama.llama_cpp import ffi, lib  # pyright: ignore[reportMissingImports]

TURNS = 3


def open_model(file: str) -> Any:
    lib.llama_backend_init()
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(file.encode(), parameters)
    if model == ffi.NULL:
        sys.exit(f"llama.cpp does not load {file}")
    return model


def open_context(model: Any, threads: int, sequences: int, length: int, flash: bool) -> Any:
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = sequences * length
    parameters.n_seq_max = sequences
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.flash_attn = flash
    parameters.type_k = parameters.type_v = lib.GGML_TYPE_F16 if flash else lib.GGML_TYPE_F32
    return lib.llama_init_from_model(model, parameters)


def decode(context: Any, tokens: list[list[int]], start: int) -> list[int]:
    """Runs the next tokens of every sequence, from place `start` on; gives the likeliest that follow."""
    length = len(tokens[0])
    batch = lib.llama_batch_init(len(tokens) * length, 0, 1)
    batch.n_tokens = len(tokens) * length
    for sequence, ids in enumerate(tokens):
        for place, token in enumerate(ids):
            i = sequence * length + place
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, start + place, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = place == length - 1
    if lib.llama_decode(context, batch) != 0:
        sys.exit("llama.cpp does not decode")
    sampler = lib.llama_sampler_init_greedy()
    found = [
        lib.llama_sampler_sample(sampler, context, (sequence + 1) * length - 1)
        for sequence in range(len(tokens))
    ]
    lib.llama_sampler_free(sampler)
    lib.llama_batch_free(batch)
    return found


def main(file: str, threads: int, new: int, prompts: list[list[int]]) -> float:
    model = open_model(file)
    shape = threads, len(prompts), len(prompts[0]) + new
    contexts = [open_context(model, *shape, flash) for flash in (False, True)]
    best = 0.0
    for context in contexts * TURNS:
        lib.llama_kv_self_clear(context)
        written = decode(context, prompts, 0)
        start = time.perf_counter()
        for place in range(len(prompts[0]), len(prompts[0]) + new - 1):
            written = decode(context, [[token] for token in written], place)
        best = max(best, len(prompts) * (new - 1) / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.load(sys.stdin)))
