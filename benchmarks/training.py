"""Fine-tuning on rationales against transformers' Trainer: the same weights, examples and hyper-parameters.

The rationales that the paper's authors released, each after all earlier text of its document, and the paper's
optimizer. Ours computes one token tree per document, with the parts of `train/loop.py` from the store of
trees to the loss on the host; its files are left out. "Apart" is our own program without the trees: every
example by itself, packed into the same rows. The peer gets its strongest plain form: all examples sorted by
length, so that padding to the longest of a microbatch costs next to nothing, fused AdamW, and the microbatch
that was fastest on a part of the input. Before that it takes our first steps, and the program ends where its
losses or gradients differ from ours. Adapters are trained by ours alone.

The limit: 6 FLOPs per weight for every token, 4 where only adapters are trained; the output head only where
there is a target; attention (`lm/model/flops.py`). FLOP/s counts what the *trees* need of these (for the peer
and apart: what their tokens need, without padding) and stands beside what one large matrix product reaches
on this machine. On an accelerator that quotient is the MFU, of a measured ceiling.

On two cores, rows of the paper's 1,024 tokens, one at a time, took the least processor time of those tried
(768 to 2,048 tokens, one to four rows).
"""

import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from documents import shared_data
from flax import nnx
from jax.sharding import Mesh
from measure import arguments, compilations, matmul_peak, peak_memory, print_json, print_table
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from rationalyst_jax.lm.devices.sharding import created, mesh_of
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.flops import training_flops
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.model.settings import LoraConfig
from rationalyst_jax.lm.weights.hf import save_llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.prompts.prompt import load_prompts
from rationalyst_jax.train.batches import Batches, loader, shuffled_steps
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.train.examples import Example
from rationalyst_jax.train.loop import begin, first_state
from rationalyst_jax.train.rationales import read_rationales
from rationalyst_jax.train.step import train_step
from rationalyst_jax.train.store import TreeStore, open_store

Steps = list[list[Example]]
SMALL = TrainConfig(row_length=1024, microbatch_rows=1)
LARGE = TrainConfig(
    epochs=4, batch_examples=128, row_length=2048, microbatch_rows=4, dtype="bfloat16", remat="dots"
)
# By platform: what the ceiling is measured with, and what is trained how.
CEILING = {"cpu": ("float32", 2048), "gpu": ("bfloat16", 8192), "tpu": ("bfloat16", 8192)}
ON_CPU = {
    "4 layers, V 128,256": (LlamaConfig(128256, 512, 1792, 4, 8, 2, 64), SMALL),  # the tokenizer's own
    "4 layers, V 4,096": (LlamaConfig(4096, 512, 1792, 4, 8, 2, 64), SMALL),
}
ON_ACCELERATOR = {
    "Llama-3.2-1B": (LlamaConfig.llama3_2_1b(), LARGE),
    "Llama-3-8B, LoRA": (LlamaConfig.llama3_8b(), replace(LARGE, lora=LoraConfig())),
}
CASES = {"cpu": ON_CPU, "gpu": ON_ACCELERATOR, "tpu": ON_ACCELERATOR}
MICROBATCHES = (4, 8, 16)  # examples: sizes that the peer may choose from
CHECKED = 4  # steps
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}  # of losses and gradient norms, relative to ours


@dataclass(frozen=True)
class Run:
    """What one side did. computed: nodes or tokens that were needed, which filled so much of all places.

    losses, norms: of each step, before its update and before clipping.
    """

    seconds: float
    computed: int
    flops: float
    filled: float
    peak_mib: float
    losses: list[float]
    norms: list[float]
    compilations: int | None = None


# ---- Input ----


def released_rationales(shared: Path) -> list[Example]:
    """The authors' rationales as the training stage renders them; those of one question are one group."""
    with (shared / "rationalyst" / "rationales.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rationales.jsonl"
        with path.open("w") as file:
            for row in rows:
                question = row["preceeding"].partition("\nAnswer:")[0]  # their spelling
                ours = {
                    "document_id": question,
                    "preceding": row["preceeding"],
                    "rationale": row["rationale"],
                }
                file.write(json.dumps(ours) + "\n")
        tokenizer = load_tokenizer(shared / "llama3_tokenizer")
        return list(read_rationales(path, tokenizer, load_prompts("llama3")))


def renumbered(examples: Sequence[Example], vocabulary: int) -> list[Example]:
    """The ids that occur, counted from 0 in order of appearance, for a model with a small vocabulary."""
    number: dict[int, int] = {}

    def small(i: int) -> int:
        return number.setdefault(i, len(number)) % vocabulary

    return [replace(example, tokens=tuple(map(small, example.tokens))) for example in examples]


# ---- Ours ----


def store_of(examples: Sequence[Example], folder: Path, train: TrainConfig) -> TreeStore:
    store = open_store(folder, {}, lambda: examples, train.row_length, train.batch_examples)
    assert not store.dropped  # examples/s counts all
    return store


def new_model(config: LlamaConfig, train: TrainConfig, mesh: Mesh) -> Llama:
    """The weights that everyone starts from."""
    dtype = train.dtype if train.lora else train.master_dtype
    return created(lambda: Llama(config, rngs=nnx.Rngs(0), dtype=dtype), mesh)


def in_jax(
    config: LlamaConfig, train: TrainConfig, batches: Batches, end: int
) -> tuple[float, dict[str, list[float]]]:
    """Seconds of the first `end` steps, and their metrics: the loop of `train/loop.py` without its files."""
    mesh = batches.mesh
    steps = len(batches)
    parts = begin(new_model(config, train, mesh), train, mesh)
    state = first_state(parts, train, steps, mesh)
    jax.block_until_ready(state)
    metrics: list[Any] = []
    start = time.perf_counter()
    with closing(loader(batches)) as data:
        for step in range(end):
            number = np.int32(step)
            state, now = train_step(parts.graph, train, steps, mesh, state, parts.frozen, next(data), number)
            metrics.append(now)
            if step:
                metrics[-2] = jax.device_get(metrics[-2])  # while this step runs
        metrics[-1] = jax.device_get(metrics[-1])
    seconds = time.perf_counter() - start
    return seconds, {name: [float(row[name]) for row in metrics] for name in metrics[0]}


def ours(config: LlamaConfig, train: TrainConfig, store: TreeStore) -> tuple[Run, list[np.ndarray]]:
    """One run, and which trees each of its steps took."""
    steps = math.ceil(train.epochs * store.examples.sum() / train.batch_examples)
    members = shuffled_steps(store.examples, train.batch_examples, steps, train.seed)
    batches = Batches(store, members, train, mesh_of(train.mesh, jax.devices()[:1]))
    with compilations() as compiled:
        in_jax(config, train, batches, 1)
        seconds, metrics = in_jax(config, train, batches, steps)
    rows = sum(int(batch.microbatches) * batches.rows for batch in batches)
    computed = sum(map(batches.tokens, range(steps)))
    run = Run(
        seconds,
        computed,
        flops=needed(config, train, batches),
        filled=computed / (rows * train.row_length),
        peak_mib=device_peak(),
        losses=metrics["loss"],
        norms=metrics["grad_norm"],
        compilations=len(compiled),
    )
    return run, members


def needed(config: LlamaConfig, train: TrainConfig, batches: Batches) -> float:
    """FLOPs that the trees of all steps ask for."""
    counts = (batches.tokens, batches.attended, batches.targets)
    of_step = ((count(step) for count in counts) for step in range(len(batches)))
    return sum(training_flops(config, *numbers, lora=train.lora is not None) for numbers in of_step)


def device_peak() -> float:
    """The most memory that JAX has had on the accelerator, on a CPU this process, in MiB."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 2**20 if stats else peak_memory()


# ---- The peer ----


def sorted_steps(examples: Sequence[Example], train: TrainConfig) -> Steps:
    """Epochs over all examples, the longest together; the steps of each in random order."""
    ordered = sorted(examples, key=lambda example: len(example.tokens))
    size = train.batch_examples
    steps = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    orders = [np.random.default_rng(epoch).permutation(len(steps)) for epoch in range(int(train.epochs))]
    return [steps[i] for order in orders for i in order]


def split(step: Sequence[Example], parts: int) -> list[list[Example]]:
    """The examples of a step in so many microbatches, sorted by length."""
    ordered = sorted(step, key=lambda example: len(example.tokens))
    bounds = np.linspace(0, len(ordered), parts + 1).round().astype(int)
    return [ordered[a:b] for a, b in pairwise(bounds)]


def collate(items: list[list[Example]]) -> dict[str, torch.Tensor]:
    """A microbatch, padded to its longest example; the loss is on what is weighted alone."""
    (examples,) = items
    shape = len(examples), max(len(example.tokens) for example in examples)
    ids, mask, labels = (torch.full(shape, filler) for filler in (0, 0, -100))
    for row, example in enumerate(examples):
        n = len(example.tokens)
        tokens = torch.tensor(example.tokens)
        ids[row, :n] = tokens
        mask[row, :n] = 1
        labels[row, :n] = torch.where(torch.tensor(example.weights) > 0, tokens, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class StopAfter(TrainerCallback):
    def __init__(self, end: int):
        self.end = end

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.end


def in_torch(
    folder: Path, train: TrainConfig, steps: Steps, microbatch: int, end: int
) -> tuple[float, dict[str, list[float]]]:
    """Seconds of the first `end` steps of the Trainer on the saved weights, and their metrics."""
    parts = max(1, train.batch_examples // microbatch)
    data = [examples for step in steps for examples in split(step, parts)]
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=1,  # an item of the data set is a microbatch
        gradient_accumulation_steps=parts,
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        optim="adamw_torch_fused",
        learning_rate=train.peak_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(train.warmup_fraction * len(steps)),
        weight_decay=train.weight_decay,
        adam_beta1=train.b1,
        adam_beta2=train.b2,
        adam_epsilon=train.eps,
        max_grad_norm=train.clip_norm,
        bf16=train.dtype == "bfloat16",
        use_cpu=jax.default_backend() == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = Trainer(model, arguments, collate, data, callbacks=[StopAfter(end)])
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return seconds, {name: [row[name] for row in rows] for name in ("loss", "grad_norm")}


def theirs(
    folder: Path, train: TrainConfig, examples: Sequence[Example], first: Steps, reference: Run, flops: float
) -> Run:
    """The peer's best run; ends the program where it takes our `first` steps otherwise than `reference`."""
    _, checked = in_torch(folder, train, first, min(MICROBATCHES), CHECKED)
    for name, values in (("loss", reference.losses), ("grad_norm", reference.norms)):
        difference = np.abs(np.array(checked[name]) / values[:CHECKED] - 1).max()
        if not difference <= TOLERANCE[train.dtype]:
            raise SystemExit(f"{name} of trees and of transformers differ by {difference:.2g}")
    steps = sorted_steps(examples, train)
    speed = {size: in_torch(folder, train, steps, size, 2)[0] for size in MICROBATCHES}
    microbatch = min(speed, key=lambda size: speed[size])
    seconds, metrics = in_torch(folder, train, steps, microbatch, len(steps))
    lengths = [
        [len(example.tokens) for example in part]
        for step in steps
        for part in split(step, max(1, train.batch_examples // microbatch))
    ]
    computed = sum(map(sum, lengths))
    places = sum(len(part) * max(part) for part in lengths)
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak_memory()
    return Run(
        seconds, computed, flops, computed / places, peak, losses=metrics["loss"], norms=metrics["grad_norm"]
    )


# ---- Measuring ----


def measure(config: LlamaConfig, train: TrainConfig, examples: Sequence[Example]) -> dict[str, Run]:
    """One model trained by all sides; adapters by ours alone."""
    runs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trees = store_of(examples, folder / "trees", train)
        alone = [replace(example, group=str(i)) for i, example in enumerate(examples)]
        runs["trees"], members = ours(config, train, trees)
        runs["apart"], _ = ours(config, train, store_of(alone, folder / "apart", train))
        if train.lora is None:
            save_llama(new_model(config, train, mesh_of(train.mesh, jax.devices()[:1])), folder / "model")
            of_group: dict[str, list[Example]] = {}
            for example in examples:
                of_group.setdefault(example.group, []).append(example)
            first = [[e for i in chosen for e in of_group[trees.group[i]]] for chosen in members]
            theirs_needs = runs["apart"].flops
            runs["transformers"] = theirs(
                folder / "model", train, examples, first, runs["trees"], theirs_needs
            )
    return runs


def lines(
    name: str, train: TrainConfig, examples: Sequence[Example], runs: dict[str, Run], peak: float
) -> Iterator[list[str]]:
    """One line of the table for each run."""
    tokens = train.epochs * sum(len(example.tokens) for example in examples)
    peer = runs.get("transformers")
    for by, run in runs.items():
        yield [
            name if by == "trees" else "",
            by,
            f"{run.seconds:.2f}",
            f"{train.epochs * len(examples) / run.seconds:.1f}",
            f"{tokens / run.seconds:,.0f}",
            f"{run.computed:,}",
            f"{run.filled:.0%}",
            f"{run.flops / run.seconds / 1e9:,.0f}",
            f"{run.flops / run.seconds / peak:.0%}",
            f"{run.peak_mib:,.0f}",
            "–" if run.compilations is None else str(run.compilations),
            "–" if peer is None else f"{peer.seconds / run.seconds:.2f}",
        ]


HEADINGS = (
    *("model", "by", "seconds", "examples/s", "tokens/s", "computed", "filled"),
    *("GFLOP/s", "of matmul", "peak MiB", "compiled", "ratio"),
)


def main() -> None:
    # torch needs memory on a GPU as well: JAX must not take it all. Read when JAX first looks for devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    parser = arguments(__doc__)
    parser.add_argument("--case", default="", help="only models in whose name this is: 'V 4,096'")
    options = parser.parse_args()
    platform = jax.default_backend()
    cases = {name: case for name, case in CASES[platform].items() if options.case in name}
    if not cases:
        parser.error(f"--case {options.case}: none of {', '.join(CASES[platform])}")
    dtype, size = CEILING[platform]
    peak = matmul_peak(dtype, size)
    released = released_rationales(shared_data())
    table: list[list[str] | None] = []
    machine: dict[str, Any] = {}
    for name, (config, train) in cases.items():
        examples = renumbered(released, config.vocab_size)
        runs = measure(config, train, examples)
        table += [*lines(name, train, examples, runs, peak), None]
        machine[name] = {by: asdict(run) for by, run in runs.items()}
    tokens = sum(len(example.tokens) for example in released)
    print_table(
        f"{len(released)} released rationales, {tokens:,} tokens an epoch, {dtype}; "
        f"a matrix product of {size} reaches {peak / 1e9:,.0f} GFLOP/s",
        HEADINGS,
        table,
        "tokens/s: of the separate examples; computed: nodes of the trees, or tokens; filled: of the\n"
        "places computed; peak: of the process so far, on a GPU what each side has had there; compiled:\n"
        "programs, with the small ones of single operations",
    )
    if options.json:
        first = next(iter(machine))
        train = cases[first][1]
        rate = {by: train.epochs * len(released) / run["seconds"] for by, run in machine[first].items()}
        print_json("training", "examples/s", rate["trees"], rate.get("transformers"), models=machine)


if __name__ == "__main__":
    main()
