"""Choice by likelihood against lm-evaluation-harness: the same weights, questions and numbers.

Both sides start from texts and end with the sum of every choice: tokenizing, computing, adding up. The peer
is the harness' own transformers backend with the batch size that was fastest on a part of the questions.
Sides take turns, so that a busy machine is as busy for both; seconds are medians.

The limit: 2 FLOPs per weight of the layers for every node of the trees, and per weight of the output layer
for every token of a choice. The peer computes the context anew for each choice, and logits at every place.
FLOP/s counts what the trees need, whoever computes.

Levanter's harness packs a sequence for each choice, with its context, into rows of one length. Its places are
counted for the same questions and rows, not run.

Random weights will do for speed. With a real checkpoint (--model) accuracies are worth a look, too.
"""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from string import ascii_uppercase
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import numpy as np
import torch
from documents import shared_data
from flax import nnx
from likelihood import packed_sizes
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from measure import arguments, compilations, matmul_peak, peak_memory, print_json, print_table
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.evaluate.choice_likelihood import ChoiceScores, Encoded, begin, encode_clozes
from rationalyst_jax.evaluate.config import ChooseConfig
from rationalyst_jax.evaluate.statistics import proportion_interval
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.flops import forward_flops
from rationalyst_jax.lm.model.llama import Llama, lay_out
from rationalyst_jax.lm.trees.likelihood import Work
from rationalyst_jax.lm.weights.hf import save_llama
from rationalyst_jax.lm.weights.open import open_checkpoint
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.report.style import percent
from rationalyst_jax.tasks.benchmarks import task_named
from rationalyst_jax.tasks.cloze import Cloze
from rationalyst_jax.tasks.question import Question

MODEL = LlamaConfig(128256, 160, 640, 12, 5, 1, 32, tie_embeddings=True)  # 25M weights
BATCHES = (4, 8, 16)  # sizes that the peer may choose from
TOLERANCE = 1e-3  # nats, in a sum
Sums = Sequence[Sequence[float]]  # of each question, those of its choices
HEADINGS = (
    *("input", "by", "seconds", "questions/s", "tokens/s", "computed", "GFLOP/s", "of matmul"),
    *("peak MiB", "", "ratio"),
)


@dataclass(frozen=True)
class Side:
    """What one side took: the seconds of each turn; memory: MiB of the process when it had run first."""

    seconds: list[float]
    memory: float
    note: str

    @property
    def median(self) -> float:
        return median(self.seconds)


def ours(
    model: Llama, tokenizer: PreTrainedTokenizerBase, clozes: Mapping[str, Cloze], config: ChooseConfig
) -> tuple[dict[str, ChoiceScores], Work]:
    begun = begin(model, encode_clozes(tokenizer, clozes), config)
    return begun.result(), begun.scores.work


def theirs(peer: HFLM, clozes: Mapping[str, Cloze], unconditional: bool, batch: int) -> list[list[float]]:
    """The sums of each question's choices, then where asked for those of the choices alone."""
    peer.batch_size_per_gpu = batch
    requests = []
    for cloze in clozes.values():
        contexts = (cloze.context, "") if unconditional else (cloze.context,)
        pairs = [(context, f" {choice}") for context in contexts for choice in cloze.choices]
        requests += [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    sums = iter(peer.loglikelihood(requests, disable_tqdm=True))
    each = 2 if unconditional else 1
    return [[next(sums)[0] for _ in range(each * len(c.choices))] for c in clozes.values()]


def check(found: Mapping[str, ChoiceScores], sums: Sums) -> float:
    """The largest difference of two sums (nats); ends the program where it, or a pick, is not right."""
    furthest = 0.0
    for (name, scores), of_question in zip(found.items(), sums, strict=True):
        values = np.array(scores.values["sum"])
        n = len(values)
        numbers = [
            *values,
            *(values - scores.values.get("unconditional", ()) if len(of_question) > n else ()),
        ]
        furthest = max(furthest, float(np.abs(np.subtract(numbers, of_question)).max()))
        if not furthest <= TOLERANCE:
            raise SystemExit(f"question {name}: the sides differ by {furthest:.2g} nats")
        best = np.flatnonzero(np.array(of_question[:n]) >= max(of_question[:n]) - TOLERANCE)
        if scores.picked("sum") not in best:
            raise SystemExit(f"question {name}: the sides pick different choices")
    return furthest


def measure(
    model: Llama,
    peer: HFLM,
    tokenizer: PreTrainedTokenizerBase,
    clozes: Mapping[str, Cloze],
    config: ChooseConfig,
    turns: int,
) -> tuple[Side, Side, Work, float, dict[str, Sums]]:
    """Both sides in turns; the work of ours, how far the numbers are apart, and the sums of each side."""
    with compilations() as compiled:
        found, work = ours(model, tokenizer, clozes, config)
    memory = peak_memory()
    part = dict(list(clozes.items())[:: max(1, len(clozes) // 6)])
    speed = {}
    for batch in BATCHES:
        start = time.perf_counter()
        theirs(peer, part, config.unconditional, batch)
        speed[batch] = time.perf_counter() - start
    batch = min(speed, key=lambda batch: speed[batch])
    our_seconds = []
    their_seconds = []
    furthest = 0.0
    sums: list[list[float]] = []
    for _ in range(turns):
        start = time.perf_counter()
        found, work = ours(model, tokenizer, clozes, config)
        between = time.perf_counter()
        sums = theirs(peer, clozes, config.unconditional, batch)
        their_seconds.append(time.perf_counter() - between)
        our_seconds.append(between - start)
        furthest = max(furthest, check(found, sums))
    us = Side(our_seconds, memory, f"{len(compiled)} compiled")
    of_sides = {"ours": [scores.values["sum"] for scores in found.values()], "lm-eval": sums}
    return us, Side(their_seconds, peak_memory(), f"batch {batch}"), work, furthest, of_sides


def accuracies(questions: Sequence[Question], clozes: Mapping[str, Cloze], sums: Sums) -> list[str]:
    """The shares of right picks (%) by sums and by sums for each character: acc and acc_norm."""
    found = []
    for by_length in (False, True):
        right = []
        for question, of_question in zip(questions, sums, strict=True):
            choices = clozes[question.id].choices
            numbers = np.array(of_question[: len(choices)])
            numbers = numbers / [len(choice) for choice in choices] if by_length else numbers
            right.append(ascii_uppercase[int(numbers.argmax())] == question.gold)
        share = proportion_interval(right, [question.cluster for question in questions])
        found.append(percent(share.mean, share.low, share.high))
    return found


def asked_for(encoded: Mapping[str, Any], unconditional: bool) -> int:
    """Tokens that a probability is asked for, those that choices share once."""
    asked = set()
    for name, one in encoded.items():
        for pair in one.conditional:
            asked |= {(name, pair.continuation[: k + 1]) for k in range(len(pair.continuation))}
        for pair in one.unconditional if unconditional else ():
            asked |= {pair.continuation[: k + 1] for k in range(len(pair.continuation))}
    return len(asked)


def packed(encoded: Mapping[str, Encoded], config: ChooseConfig) -> str:
    """The places that are computed: of our trees, and of a sequence for each choice, packed."""
    trees = [list(one.conditional) for one in encoded.values()]
    if config.unconditional:
        trees.append([pair for one in encoded.values() for pair in one.unconditional])
    apart = [[pair] for group in trees for pair in group]
    ours, levanters = (packed_sizes(groups, config.row_length).size for groups in (trees, apart))
    return f"{ours:,} places in trees, {levanters:,} as Levanter packs ({levanters / ours:.2f} times)"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--task", default="hellaswag", help="a task that lm-evaluation-harness has, too")
    parser.add_argument("--file", type=Path, help="the task's questions; by default HellaSwag's of ../shared")
    parser.add_argument("--model", type=Path, help="checkpoint folder; by default random weights")
    options = parser.parse_args()
    task = task_named(options.task)
    assert task.cloze is not None
    rows = task.read(options.file or shared_data() / "hellaswag" / "val_1000.jsonl")[: options.questions]
    clozes = {question.id: task.cloze(question) for question in rows}
    tokenizer = load_tokenizer(options.model or shared_data() / "llama3_tokenizer")
    encoded = encode_clozes(tokenizer, clozes)
    peak = matmul_peak("float32", 2048)
    peer_options: Any = {"dtype": "float32", "device": "cpu", "batch_size": BATCHES[0]}
    if options.model is None:
        model = Llama(MODEL, rngs=nnx.Rngs(0))
        with tempfile.TemporaryDirectory() as folder:
            save_llama(model, folder)
            tokenizer.save_pretrained(folder)
            peer = HFLM(pretrained=folder, **peer_options)
        lay_out(model)  # as commands have it
    else:
        model = open_checkpoint(options.model).load_for_inference()
        peer = HFLM(pretrained=str(options.model), **peer_options)
    head = model.config.vocab_size * model.config.hidden_size
    body = forward_flops(model.config, 1, 0) // 2 - head
    table = []
    machine = {}
    sums: dict[str, Sums] = {}
    for unconditional in (False, True):
        config = ChooseConfig(unconditional=unconditional)
        us, them, work, furthest, sums = measure(model, peer, tokenizer, clozes, config, options.turns)
        flops = 2 * (body * work.nodes + head * asked_for(encoded, unconditional))
        what = "with unconditional" if unconditional else "sums alone"
        machine[what] = {"ours": us.seconds, "lm-eval": them.seconds}
        for by, side, computed in (("ours", us, work.nodes), ("lm-eval", them, work.tokens)):
            cells = (
                what if by == "ours" else f"differ by {furthest:.1g} nats",
                by,
                f"{side.median:.2f}",
                f"{len(clozes) / side.median:.2f}",
                f"{work.tokens / side.median:,.0f}",
                f"{computed:,}",
                f"{flops / side.median / 1e9:,.1f}",
                f"{flops / side.median / peak:.0%}",
                f"{side.memory:,.0f}",
                side.note,
                f"{them.median / side.median:.2f}",
            )
            table.append(cells)
        table.append(None)
        print(f"{what}, rows of {config.row_length}: {packed(encoded, config)}")
    print_table(
        f"right, %, of {len(clozes)} questions of {task.title}, 95 % intervals",
        ("by", "acc", "acc_norm"),
        [(by, *accuracies(rows, clozes, of_side)) for by, of_side in sums.items()],
    )
    print_table(
        f"{len(clozes)} questions of {task.title}, {torch.get_num_threads()} threads, load "
        f"{os.getloadavg()[0]:.0f}; a matrix product of 2,048 reaches {peak / 1e9:,.0f} GFLOP/s",
        HEADINGS,
        table,
        "tokens/s: of the sequences apart; computed: nodes of the trees, or tokens; GFLOP/s: what the trees\n"
        "need; peak: of the process so far, ours runs first",
    )
    if options.json:
        first = next(iter(machine.values()))
        rate = {by: len(clozes) / median(seconds) for by, seconds in first.items()}
        print_json("choices", "questions/s", rate["ours"], rate["lm-eval"], inputs=machine)


if __name__ == "__main__":
    main()
