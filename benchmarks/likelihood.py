"""The likelihood filter against transformers: the same weights, the same triples, the same numbers out.

Ours computes one token tree per document. "Apart" is our own program without the trees: every sequence by
itself, packed into the same rows. The peer gets its strongest plain form: sequences sorted by length,
left-padded in batches, `logits_to_keep` no longer than the longest continuation, and the batch size that was
fastest on a part of the input.

The limit: 2 FLOPs per weight for every token, the output head only where a probability is asked for. FLOP/s
counts what the *trees* need of these (for the peer and apart: what their tokens need, without padding) and
stands beside what one large matrix product reaches on this machine.

With --model a real checkpoint, in float32, scores the real documents. CTranslate2, where it is installed, is
a second peer then: a CPU's user would choose it.
"""

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx
from measure import (
    arguments,
    best_of,
    compilations,
    matmul_peak,
    peak_memory,
    print_json,
    print_table,
    visited,
)
from peers import ctranslate2_generator
from transformers import AutoModelForCausalLM

from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.flops import forward_flops
from rationalyst_jax.lm.model.llama import Llama, lay_out
from rationalyst_jax.lm.trees.likelihood import Pair, Work, score
from rationalyst_jax.lm.trees.reduction import reduce_logprobs
from rationalyst_jax.lm.trees.tree import build_trees, pack
from rationalyst_jax.lm.weights.hf import save_llama
from rationalyst_jax.lm.weights.open import Checkpoint, open_checkpoint
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.prompts.prompt import load_prompts

Groups = list[list[Pair]]
MODELS = {
    "4 layers, V 4,096": LlamaConfig(4096, 512, 1792, 4, 8, 2, 64),
    "4 layers, V 128,256": LlamaConfig(128256, 512, 1792, 4, 8, 2, 64),
    "Llama-3.2-1B": LlamaConfig.llama3_2_1b(),
    "Llama-3-8B": LlamaConfig.llama3_8b(),
}
BATCHES = (4, 8, 16)  # sizes that the peer may choose from
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}  # nats, in a decayed sum of some ten log-probabilities
PEERS = {"transformers", "CTranslate2"}
decayed_sum = partial(reduce_logprobs, reduction="decayed_sum")


@dataclass(frozen=True)
class Sizes:
    """What is measured: the models, and rows that are computed at once."""

    models: tuple[str, ...]
    dtype: str
    row_length: int
    rows_per_batch: int
    documents: int
    characters: int
    matmul: int


SMALL = Sizes(("4 layers, V 4,096", "4 layers, V 128,256"), "float32", 4096, 1, 2, 8000, 2048)
LLAMA = Sizes(("Llama-3.2-1B", "Llama-3-8B"), "bfloat16", 8192, 1, 8, 8000, 8192)
SIZES = {"cpu": SMALL, "gpu": LLAMA, "tpu": LLAMA}


@dataclass(frozen=True)
class Run:
    """What one side did. computed: nodes or tokens that were needed, which filled so much of all places."""

    seconds: float
    computed: int
    filled: float
    peak_mib: float
    visited: float | None = None
    compilations: int | None = None


# ---- Inputs ----


def inputs(sizes: Sizes, checkpoint: Checkpoint | None, documents: int | None) -> dict[str, Groups]:
    """Real documents, so many of them or all, and long ones with few and many rationales, as the filter
    renders them; with a checkpoint the real ones alone."""
    # Not for who takes only the sides from here: these need all that mining needs.
    from documents import filter_groups, long_documents, real_documents, shared_data

    shared = shared_data()
    tokenizer = checkpoint.tokenizer if checkpoint else load_tokenizer(shared / "llama3_tokenizer")
    render = partial(filter_groups, tokenizer=tokenizer, prompts=load_prompts("llama3"))
    found = {"real": render(real_documents(shared))[:documents]}
    for rationales in () if checkpoint else (2, 8, 32):
        found[f"long, {rationales} rationales"] = render(
            long_documents(shared, rationales, sizes.documents, sizes.characters)
        )
    return found


def renumbered(groups: Groups, vocabulary: int) -> Groups:
    """The ids that occur, counted from 0 in order of appearance, for a model with a small vocabulary."""
    number: dict[int, int] = {}

    def small(ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(number.setdefault(i, len(number)) % vocabulary for i in ids)

    return [[Pair(small(pair.context), small(pair.continuation)) for pair in group] for group in groups]


# ---- The three sides ----


def in_jax(model: Llama, groups: Groups, sizes: Sizes) -> tuple[np.ndarray, Work]:
    """The decayed sums of all pairs."""
    rows: dict[str, Any] = {"row_length": sizes.row_length, "rows_per_batch": sizes.rows_per_batch}
    scores = score(model, groups, **rows)
    sums = [decayed_sum(logprobs) for of_group in scores.result() for logprobs in of_group]
    return np.array(sums), scores.work


def in_torch(peer: Any, pairs: Sequence[Pair], batch: int) -> np.ndarray:
    sums = np.zeros(len(pairs))
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i]))
    for start in range(0, len(order), batch):
        members = order[start : start + batch]
        width = max(len(pairs[i]) for i in members)
        keep = max(len(pairs[i].continuation) for i in members)
        ids = torch.zeros((len(members), width), dtype=torch.long)
        for row, i in enumerate(members):
            ids[row, width - len(pairs[i]) :] = torch.tensor(pairs[i].context + pairs[i].continuation)
        length = torch.tensor([len(pairs[i]) for i in members])
        place = torch.arange(width) - (width - length)[:, None]
        with torch.inference_mode():
            logits = peer(
                ids.to(peer.device),
                attention_mask=(place >= 0).to(peer.device),
                position_ids=place.clamp(min=0).to(peer.device),
                logits_to_keep=keep + 1,
                use_cache=False,
            ).logits[:, :-1]
            target = ids[:, -keep:].to(peer.device)
            chosen = logits.gather(2, target[..., None])[..., 0].float()
            logprobs = (chosen - logits.float().logsumexp(2)).cpu().double().numpy()
        for row, i in enumerate(members):
            n = len(pairs[i].continuation)
            sums[i] = decayed_sum(logprobs[row, keep - n :])
    return sums


def in_ctranslate2(generator: Any, spelled: Callable[..., Any], pairs: Sequence[Pair]) -> np.ndarray:
    """Sorted and padded by itself, in batches of so many tokens as were fastest of those tried."""
    results = generator.score_batch(
        [spelled(list(pair.context + pair.continuation)) for pair in pairs],
        max_batch_size=1024,
        batch_type="tokens",
        max_input_length=0,  # nothing is cut off
    )
    found = zip(pairs, results, strict=True)
    return np.array([decayed_sum(np.array(r.log_probs)[-len(pair.continuation) :]) for pair, r in found])


def same_model_in_torch(model: Llama) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        save_llama(model, folder)
        return model_in_torch(folder)


def model_in_torch(folder: str | Path) -> Any:
    peer: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    return peer.to("cuda") if jax.default_backend() == "gpu" else peer


# ---- Measuring ----


def packed_sizes(groups: Groups, row_length: int) -> np.ndarray:
    """Subtree sizes of the rows that the filter makes of all groups."""
    sequences = ([pair.context + pair.continuation for pair in group] for group in groups)
    return pack(
        [tree for s in sequences for tree, _ in build_trees(s, row_length)], row_length
    ).subtree_size_RT


def ours(model: Llama, groups: Groups, sizes: Sizes) -> tuple[Run, np.ndarray]:
    with compilations() as compiled:
        in_jax(model, groups[:1], sizes)
        start = time.perf_counter()
        sums, work = in_jax(model, groups, sizes)
        seconds = time.perf_counter() - start
    seen = visited(packed_sizes(groups, sizes.row_length))
    return Run(seconds, work.nodes, work.filled, peak_memory(), seen, len(compiled)), sums


def theirs(peer: Any, groups: Groups, batches: Sequence[int] = BATCHES) -> tuple[Run, np.ndarray]:
    pairs = [pair for group in groups for pair in group]
    part = pairs[:: max(1, len(pairs) // 48)]
    speed = {batch: best_of(1, lambda b=batch: in_torch(peer, part, b))[0] for batch in batches}
    batch = min(speed, key=lambda batch: speed[batch])
    start = time.perf_counter()
    sums = in_torch(peer, pairs, batch)
    seconds = time.perf_counter() - start
    tokens = sum(map(len, pairs))
    ordered = sorted(map(len, pairs))
    places = sum(len(b) * b[-1] for b in (ordered[i : i + batch] for i in range(0, len(ordered), batch)))
    return Run(seconds, tokens, tokens / places, peak_memory()), sums


def theirs_in_ctranslate2(checkpoint: Checkpoint, groups: Groups) -> tuple[Run, np.ndarray]:
    pairs = [pair for group in groups for pair in group]
    generator = ctranslate2_generator(checkpoint)
    score = partial(in_ctranslate2, generator, checkpoint.tokenizer.convert_ids_to_tokens)
    score(pairs[:8])
    start = time.perf_counter()
    sums = score(pairs)
    seconds = time.perf_counter() - start
    return Run(seconds, sum(map(len, pairs)), math.nan, peak_memory()), sums


def measure(
    name: str, groups: Groups, model: Llama, peer: Any, sizes: Sizes, checkpoint: Checkpoint | None
) -> dict[str, Run]:
    """One input through all sides; ends the program where they disagree."""
    runs, sums = {}, {}
    runs["trees"], sums["trees"] = ours(model, groups, sizes)
    runs["apart"], sums["apart"] = ours(model, [[pair] for group in groups for pair in group], sizes)
    runs["transformers"], sums["transformers"] = theirs(peer, groups)
    if checkpoint is not None and find_spec("ctranslate2"):
        runs["CTranslate2"], sums["CTranslate2"] = theirs_in_ctranslate2(checkpoint, groups)
    for by in [by for by in runs if by != "trees"]:
        difference = np.abs(sums["trees"] - sums[by]).max()
        if not difference <= TOLERANCE[sizes.dtype]:
            raise SystemExit(f"{name}: trees and {by} differ by {difference:.2g} nats")
    return runs


def lines(name: str, groups: Groups, runs: dict[str, Run], model: Llama, peak: float) -> Iterator[list[str]]:
    """One line of the table for each run."""
    config = model.config
    head = config.vocab_size * config.hidden_size
    body = forward_flops(config, 1, 0) // 2 - head
    asked = sum(len(pair.continuation) for group in groups for pair in group)
    pairs = sum(map(len, groups))
    tokens = sum(len(pair) for group in groups for pair in group)
    for by, run in runs.items():
        rate = 2 * (body * run.computed + head * asked) / run.seconds
        yield [
            name if by == "trees" else "",
            by,
            f"{run.seconds:.2f}",
            f"{pairs / 2 / run.seconds:.1f}",
            f"{tokens / run.seconds:,.0f}",
            f"{tokens:,}",
            f"{run.computed:,}",
            "–" if math.isnan(run.filled) else f"{run.filled:.0%}",
            "–" if run.visited is None else f"{run.visited:.0%}",
            f"{rate / 1e9:,.0f}",
            f"{rate / peak:.0%}",
            f"{run.peak_mib:,.0f}",
            "–" if run.compilations is None else str(run.compilations),
            f"{min(runs[peer].seconds for peer in runs.keys() & PEERS) / run.seconds:.2f}",
        ]


HEADINGS = (
    *("input", "by", "seconds", "triples/s", "tokens/s", "tokens", "computed", "filled", "blocks"),
    *("GFLOP/s", "of matmul", "peak MiB", "compiled", "ratio"),
)


def main() -> None:
    # torch needs memory on a GPU as well: JAX must not take it all. Read when JAX first looks for devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, help="folder of a Hugging Face checkpoint")
    parser.add_argument("--documents", type=int, help="so many real ones; by default all")
    options = parser.parse_args()
    sizes = SIZES[jax.default_backend()]
    checkpoint = None if options.model is None else open_checkpoint(options.model)
    if checkpoint is not None:
        sizes = replace(sizes, row_length=1024)  # the real documents are short, and leave less room in them
    given = inputs(sizes, checkpoint, options.documents)
    peak = matmul_peak(sizes.dtype, sizes.matmul)
    machine: dict[str, Any] = {}
    for name in sizes.models if checkpoint is None else (checkpoint.path.name,):
        if checkpoint is None:
            model = Llama(MODELS[name], rngs=nnx.Rngs(0), dtype=sizes.dtype)
            peer = same_model_in_torch(model)
            lay_out(model)  # as commands have it
        else:
            model = checkpoint.load_for_inference()
            peer = model_in_torch(checkpoint.path)
        table = []
        for what, groups in given.items():
            groups = renumbered(groups, model.config.vocab_size) if checkpoint is None else groups
            runs = measure(f"{name}, {what}", groups, model, peer, sizes, checkpoint)
            table += [*lines(what, groups, runs, model, peak), None]
            machine[f"{name}, {what}"] = {by: asdict(run) for by, run in runs.items()} | {
                "triples": sum(map(len, groups)) // 2
            }
        print_table(
            f"{name}, {sizes.dtype}; a matrix product of {sizes.matmul} reaches {peak / 1e9:,.0f} GFLOP/s",
            HEADINGS,
            table,
            "computed: nodes of the trees, or tokens; filled: of the places computed; blocks: visited, of\n"
            "those under the diagonal; GFLOP/s: of the weights alone; peak: of the process so far;\n"
            "ratio: to the faster peer",
        )
    if options.json:
        first = next(iter(machine.values()))
        rate = {by: first["triples"] / run["seconds"] for by, run in first.items() if by != "triples"}
        strongest = max(rate[peer] for peer in rate.keys() & PEERS)
        print_json("likelihood", "triples/s", rate["trees"], strongest, inputs=machine)


if __name__ == "__main__":
    main()
