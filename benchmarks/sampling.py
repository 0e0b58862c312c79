"""Candidate steps: our sampler against transformers' `generate`, same weights, prompts and lengths.

The guided loop's most frequent request: N candidates of at most a line for each of many trajectories. Both
sides sample exactly NEW tokens a candidate (no early stop), so they do equal work; transformers gets its
strongest plain form: prompts sorted by length, left-padded in batches, `num_return_sequences=N`.

The limit: a forward pass costs 2 FLOPs per weight and token. FLOP/s counts those alone, and stands beside
what one large float32 matrix product reaches on this machine.
"""

from typing import cast

import jax
import numpy as np
import torch
from flax import nnx
from measure import arguments, best_of, compilations, matmul_peak, peak_memory, print_json, print_table
from transformers import AutoModelForCausalLM

from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import GenerateRequest
from rationalyst_jax.lm.weights.hf import load_llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.world.checkpoint import checkpoint_path
from rationalyst_jax.world.corpus import questions

CANDIDATES, NEW, BATCH = 3, 24, 32


def ours(engine: Engine, prompts: list[list[int]], suppress: tuple[int, ...]) -> int:
    requests = [
        GenerateRequest(
            tuple(prompt), max_tokens=NEW, n=CANDIDATES, temperature=0.7, seed=i, suppress=suppress
        )
        for i, prompt in enumerate(prompts)
    ]
    return sum(len(g.tokens) for candidates in engine.generate(requests) for g in candidates)


def theirs(model, prompts: list[list[int]], suppress: tuple[int, ...], filler: int) -> int:
    generated = 0
    ordered = sorted(prompts, key=len)
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        width = max(map(len, batch))
        ids = torch.tensor([[filler] * (width - len(p)) + p for p in batch])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=0.7,
                top_k=0,
                num_return_sequences=CANDIDATES,
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                suppress_tokens=list(suppress),
                pad_token_id=filler,
            )
        generated += out.shape[0] * (out.shape[1] - width)
    return generated


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=128)
    options = parser.parse_args()

    folder = checkpoint_path("world")
    tokenizer = load_tokenizer(folder)
    model = load_llama(folder)
    rows = questions(0, options.prompts)
    encoded = tokenizer([row["question"] + "\n" for row in rows], add_special_tokens=False)["input_ids"]
    prompts = [[tokenizer.bos_token_id, *ids] for ids in encoded]
    end = cast(int, tokenizer.eos_token_id)
    suppress = (end,)  # nobody stops early
    engine = Engine(model, tokenizer, max_sequences=96)
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    with compilations() as compiled:
        our_seconds, our_tokens = best_of(3, lambda: ours(engine, prompts, suppress))
    our_memory = peak_memory()
    peer_seconds, peer_tokens = best_of(3, lambda: theirs(peer, prompts, suppress, end))
    peer_memory = peak_memory()
    assert our_tokens == peer_tokens == options.prompts * CANDIDATES * NEW
    weights = sum(w.size for w in jax.tree.leaves(nnx.state(model)))
    prompt_tokens = int(np.sum([len(p) for p in prompts]))
    flops = 2 * weights * (prompt_tokens + our_tokens)
    peak = matmul_peak("float32", 2048)
    rows = []
    for name, seconds, memory, programs in (
        ("ours", our_seconds, our_memory, str(len(compiled))),
        ("transformers", peer_seconds, peer_memory, "–"),
    ):
        rate, speed = our_tokens / seconds, flops / seconds
        cells = f"{seconds:.2f}", f"{rate:.0f}", f"{speed / 1e9:.1f}", f"{speed / peak:.0%}", f"{memory:.0f}"
        rows.append((name, *cells, programs))
    print_table(
        f"{options.prompts} prompts, {CANDIDATES} candidates of {NEW} tokens, {weights:,} weights",
        ("", "seconds", "tokens/s", "GFLOP/s", "of matmul", "peak MiB", "compiled"),
        rows,
        "peak MiB: of the process up to then, ours runs first\n"
        "compiled: number of programs, with the small ones of single operations",
    )
    print(f"ours / transformers: {peer_seconds / our_seconds:.2f}")
    if options.json:
        print_json("sampling", "tokens/s", our_tokens / our_seconds, peer_tokens / peer_seconds)


if __name__ == "__main__":
    main()
