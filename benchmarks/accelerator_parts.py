"""The parts of `accelerator.py`, one in each process: `accelerator_parts.py PART FILE [--smoke]`.

Whatever is found goes to FILE at once, so that a part that dies or is stopped leaves what it had. Weights,
documents and questions are random, made on the spot and of the usual sizes, so nothing else is needed. Each
part imports what it measures when it begins: what one of them lacks is not missed by the others.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from measure import copy_peak, matmul_peak

from rationalyst_jax.lm import attention as package
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.lm.devices.sharding import created, mesh_of
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.flops import forward_flops, training_flops
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.model.lora import Adapters
from rationalyst_jax.lm.model.settings import LoraConfig
from rationalyst_jax.lm.trees.likelihood import Pair
from rationalyst_jax.lm.trees.tree import build_tree, chain

ROOT = Path(__file__).resolve().parents[1]
IMPLEMENTATIONS = ("triton", "cudnn", "xla")  # of tree attention, in the order in which they are tried
RATIONALE = 24  # tokens


@dataclass(frozen=True)
class Sizes:
    """What is measured. documents: of `tokens` tokens with so many `rationales`; the slowest attention gets
    `few` of them. pages: of the engine's cache. heads: sizes of a head, `query_heads` and `kv_heads` how many
    there are, where attention alone is measured."""

    one: LlamaConfig
    eight: LlamaConfig
    heads: tuple[int, ...] = (128, 64)
    query_heads: int = 32
    kv_heads: int = 8
    runs: int = 5
    row_length: int = 8192
    documents: int = 16
    few: int = 4
    tokens: int = 1900
    rationales: int = 8
    matmul: int = 8192
    copied: int = 1 << 32
    peer_batches: tuple[int, ...] = (8, 32)
    batches: tuple[int, ...] = (64, 256)
    pages: int = 16384
    new: int = 64
    questions: int = 16
    examples: int = 128
    training_row: int = 2048
    steps: int = 5


# Positions enough for what is asked: the engine's tables are as wide as the model's positions.
FULL = Sizes(
    replace(LlamaConfig.llama3_2_1b(), max_position_embeddings=8192),
    LlamaConfig.llama3_8b(),
)
TINY = LlamaConfig(1024, 128, 256, 2, 2, 1, 64, tie_embeddings=True, bos_token_id=1021, eos_token_id=1022)
SMOKE = Sizes(
    *(TINY, replace(TINY, head_dim=128, tie_embeddings=False)),
    heads=(64,),
    query_heads=2,
    kv_heads=1,
    runs=1,
    row_length=512,
    documents=2,
    few=1,
    tokens=150,
    rationales=2,
    matmul=256,
    copied=1 << 20,
    peer_batches=(4,),
    batches=(8, 16),
    pages=1024,
    new=8,
    questions=2,
    examples=8,
    training_row=256,
    steps=3,
)


class Report:
    """What a part found, in a file that is whole after every line."""

    def __init__(self, path: Path):
        self.path = path
        self.found: dict[str, Any] = {"device": jax.devices()[0].device_kind, "rows": [], "notes": []}
        self.write()

    def add(self, what: str, **figures: Any) -> None:
        self.found["rows"].append({"what": what, **figures})
        self.write()

    def note(self, text: str) -> None:
        self.found["notes"].append(text)
        self.write()

    def write(self) -> None:
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(self.found, indent=1))
        os.replace(unfinished, self.path)


# ---- What is measured on ----


def random_groups(sizes: Sizes, vocabulary: int) -> list[list[Pair]]:
    """The filter's pairs of random documents: what follows a rationale, after it and without it."""
    rng = np.random.default_rng(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, vocabulary, count).tolist())

    groups = []
    for _ in range(sizes.documents):
        text = tokens(sizes.tokens)
        group = []
        places = np.linspace(0, sizes.tokens, sizes.rationales + 2).astype(int).tolist()
        for start, stop in pairwise(places[1:]):
            following = text[start:stop]
            group += [Pair(text[:start] + tokens(RATIONALE), following), Pair(text[:start], following)]
        groups.append(group)
    return groups


def random_words(count: int, rng: np.random.Generator, vocabulary: int) -> str:
    return " ".join(f"w{i}" for i in rng.integers(0, vocabulary, count))


def word_tokenizer(vocabulary: int) -> Any:
    """Token i is the word "wi", the last three are Llama 3's marks; all other words are w0.

    A random model writes marks too: in its texts they are nothing, for a prompt with a second beginning is
    refused.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
    words = {f"w{i}": i for i in range(vocabulary - len(marks))}
    names = words | {mark: len(words) + i for i, mark in enumerate(marks)}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    nothing = decoders.Replace(Regex(r"<\|\w+\|>"), "")
    tokenizer.decoder = decoders.Sequence([nothing, decoders.WordPiece(cleanup=False)])
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=marks[0], eos_token=marks[1])
    fast.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    return fast


def random_model(config: LlamaConfig, dtype: str) -> Llama:
    """Made on the device by one program, which rounds every number as soon as it is drawn."""
    mesh = mesh_of(MeshShape(), jax.devices()[:1])
    return created(lambda: Llama(config, rngs=nnx.Rngs(0), dtype=dtype), mesh)


@contextmanager
def attention_by(name: str) -> Iterator[None]:
    """What is compiled meanwhile has this attention over trees, and raises where that refuses."""
    platform = jax.default_backend()
    before = package.CHOICE[platform]
    package.CHOICE[platform] = (name,)
    jax.clear_caches()
    try:
        yield
    finally:
        package.CHOICE[platform] = before


def refusals(head_dim: int, dtype: str) -> dict[str, str | None]:
    """Why each implementation cannot be used here, None where it can."""
    import attention

    sizes = replace(attention.LLAMA_3_8B, head_dim=head_dim, dtype=dtype)
    return {name: attention.refusal(name, sizes) for name in IMPLEMENTATIONS}


def usable(report: Report, config: LlamaConfig) -> list[str]:
    """The implementations that can be used, the others noted."""
    refused = refusals(config.head_dim, "bfloat16")
    for reason in filter(None, refused.values()):
        report.note(reason)
    return [name for name, reason in refused.items() if reason is None]


def ceiling(report: Report, sizes: Sizes) -> float:
    """FLOP/s of a large matrix product, which fractions are of."""
    peak = matmul_peak("bfloat16", sizes.matmul)
    report.add(f"matrix product of {sizes.matmul}", tflops=peak / 1e12)
    return peak


def why(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


# ---- The parts ----


def numerics(report: Report, sizes: Sizes) -> None:
    """The tests that need a GPU; without one, the kernels in Triton's interpreter."""
    import pytest

    report.add("tests", passed=0, failed=0, skipped=0)
    counts = report.found["rows"][-1]
    outcomes = report.found["outcomes"] = {}

    class Told:
        """Counts tests as they end."""

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when != "call" and report.outcome == "passed":
                return
            counts[report.outcome] += 1
            name = report.nodeid.rpartition("::")[2]
            said = str(report.longrepr).strip()
            outcomes[name] = report.outcome
            if report.outcome == "failed":
                note(f"failed: {name}: {said.splitlines()[-1][:200]}")
            elif report.outcome == "skipped" and report.longrepr[2] not in reasons:
                reasons.add(report.longrepr[2])
                note(report.longrepr[2])
            else:
                write()

    note = report.note
    write = report.write
    reasons = set()
    chosen = [str(ROOT / "tests/test_gpu.py"), "-m", "gpu"]
    if jax.default_backend() != "gpu":
        chosen = [chosen[0], str(ROOT / "tests/test_attention.py"), "-m", "gpu or not gpu"]
        chosen += ["-k", "test_gpu or test_triton_on_grouped_heads"]
    # Warnings of other versions than ours are no errors here.
    status = pytest.main([*chosen, "-q", "-W", "default", "-p", "no:cacheprovider"], plugins=[Told()])
    if status not in (0, 1):
        raise SystemExit(f"pytest ended with {status}")


def kernels(report: Report, sizes: Sizes) -> None:
    """Attention alone, on rows that never branch and on trees of as many places."""
    import attention

    peak = ceiling(report, sizes)
    trees = [
        build_tree([pair.context + pair.continuation for pair in group])[0]
        for group in random_groups(replace(sizes, documents=4), 1024)
    ]
    T = sizes.row_length
    given = attention.packed("trees", trees, T)
    plain = attention.packed("plain rows", [chain(range(T))] * len(given.size_BT), T, plain=True)
    for H in sizes.heads:
        shape = replace(
            attention.LLAMA_3_8B,
            heads=sizes.query_heads,
            kv_heads=sizes.kv_heads,
            head_dim=H,
            runs=sizes.runs,
        )
        refused = refusals(H, shape.dtype)
        ours = {  # what is not ours comes first: the others are compared with it
            name: partial(attention.in_jax, partial(package.tree_attention, implementation=name))
            for name in ("cudnn", "triton", "xla")
            if refused[name] is None
        }
        for one in (plain, given):
            contenders: dict[str, Any] = dict(ours)
            if one.plain and jax.default_backend() == "gpu":
                contenders = {"jax cudnn, causal": partial(attention.in_jax, attention.cudnn_causal), **ours}

            def tell(row: Any, H: int = H) -> None:
                report.add(
                    f"H {H}, {row.input}, {row.by}, {row.direction}",
                    **{"heads": H, "input": row.input, "by": row.by, "direction": row.direction},
                    milliseconds=row.seconds * 1e3,
                    tflops=row.flops_per_s / 1e12,
                    of_matmul=row.of_matmul,
                )

            _, failed = attention.compete(one, contenders, shape, peak, tell)
            for by, reason in failed.items():
                report.note(f"failed: H {H}, {one.name}, {by}: {reason}")
        for reason in filter(None, refused.values()):
            report.note(f"H {H}: {reason}")


def filtering(report: Report, sizes: Sizes, config: LlamaConfig, with_peer: bool) -> None:
    """The filter's likelihoods of random documents, by each attention; apart and on transformers too."""
    import likelihood

    peak = ceiling(report, sizes)
    model = jax.block_until_ready(random_model(config, "bfloat16"))
    groups = random_groups(sizes, config.vocab_size)
    rows = replace(likelihood.LLAMA, row_length=sizes.row_length)
    sums: dict[str, np.ndarray] = {}

    def add(what: str, groups: list[list[Pair]], run: Any) -> None:
        tokens = sum(len(pair) for group in groups for pair in group)
        asked = sum(len(pair.continuation) for group in groups for pair in group)
        needed = forward_flops(config, run.computed, 0, asked)  # without attention: of the weights alone
        report.add(
            what,
            **{"seconds": run.seconds, "tokens_per_s": tokens / run.seconds},
            **{"computed_per_s": run.computed / run.seconds, "of_matmul": needed / run.seconds / peak},
            filled=run.filled,
        )

    def compare(by: str, expected: str) -> None:
        both = min(len(sums[by]), len(sums[expected]))
        far = np.abs(sums[by][:both] - sums[expected][:both]).max()
        report.add(f"{by}, furthest from {expected}", nats=float(far))

    for name in usable(report, config):
        part = groups[: sizes.few] if name == "xla" else groups
        try:
            with attention_by(name):
                trees, sums[name] = likelihood.ours(model, part, rows)
                add(f"trees, {name}", part, trees)
                if len(sums) > 1:
                    compare(name, next(iter(sums)))
                elif with_peer:
                    peer = likelihood.same_model_in_torch(model)
                    theirs, sums["transformers"] = likelihood.theirs(peer, part, sizes.peer_batches)
                    add("transformers", part, theirs)
                    compare(name, "transformers")
                    report.add("trees, times as fast as transformers", ratio=theirs.seconds / trees.seconds)
                    pairs = [[pair] for group in part for pair in group]
                    apart, sums["apart"] = likelihood.ours(model, pairs, rows)
                    add(f"apart, {name}", part, apart)
                    report.add("apart, times as fast as transformers", ratio=theirs.seconds / apart.seconds)
        except Exception as error:  # the other implementations are still worth measuring
            report.note(f"failed: {name}: {why(error)}")
    memory(report)


def engine(report: Report, sizes: Sizes) -> None:
    """Decoding at some batch sizes, then guided questions, ours and on transformers."""
    import decoding
    import reasoning

    from rationalyst_jax.lm.engine.engine import Engine
    from rationalyst_jax.roles.role import Role
    from rationalyst_jax.tasks.question import Question

    config = sizes.one
    V = config.vocab_size
    ends = (V - 3, V - 2, V - 1)
    config = replace(config, bos_token_id=V - 3, eos_token_id=V - 2, max_position_embeddings=4096)
    bandwidth = copy_peak(sizes.copied)
    report.add(f"copy of {sizes.copied / 2**30:.3g} GiB", gbytes_per_s=bandwidth / 1e9)
    model = jax.block_until_ready(random_model(config, "bfloat16"))
    weights = sum(weight.nbytes for weight in jax.tree.leaves(nnx.state(model)))
    tokenizer = word_tokenizer(V)
    small, large = sizes.batches
    mine = Engine(model, tokenizer, max_sequences=small, pages=sizes.pages)

    rate = decoding.ours(mine, reasoning.random_prompts(1), sizes.new, ends)
    report.add("decode, batch 1", tokens_per_s=rate, of_copy=rate * weights / bandwidth)
    rate = decoding.ours(mine, reasoning.random_prompts(small), sizes.new, ends)
    report.add(f"decode, batch {small}", tokens_per_s=rate)

    rng = np.random.default_rng(0)
    solved = [
        {"question": random_words(60, rng, V - 3), "answer": random_words(60, rng, V - 3)}
        for _ in range(reasoning.EXAMPLES)
    ]
    questions = [Question(str(i), random_words(60, rng, V - 3)) for i in range(sizes.questions)]
    with tempfile.TemporaryDirectory() as name:
        prompts = reasoning.few_shot(solved, Path(name))
        rates = {}
        for turn in ("cold", "warm"):  # the first one compiles
            mine.forget()
            seconds, _ = reasoning.guided(Role(mine, tokenizer), questions, prompts)
            rates["ours"] = len(questions) / seconds
            report.add(f"guided, ours, {turn}", questions_per_s=rates["ours"], seconds=seconds)
        reasoning.save_llama(model, name)
        peer = reasoning.Transformers(Path(name), tokenizer)
        reasoning.guided(Role(peer, tokenizer), questions[:1], prompts)
        seconds, _ = reasoning.guided(Role(peer, tokenizer), questions, prompts)
        rates["transformers"] = len(questions) / seconds
        report.add("guided, transformers", questions_per_s=rates["transformers"], seconds=seconds)
        report.add("guided, times as fast as transformers", ratio=rates["ours"] / rates["transformers"])

    del mine
    wide = Engine(model, tokenizer, max_sequences=large, pages=sizes.pages // 2)
    rate = decoding.ours(wide, reasoning.random_prompts(large), sizes.new, ends)
    report.add(f"decode, batch {large}", tokens_per_s=rate)
    for batch in (1, small):
        rate = decoding.by_transformers(peer.model, reasoning.random_prompts(batch), sizes.new, ends[1])
        report.add(f"decode, batch {batch}, transformers", tokens_per_s=rate)
    memory(report)


class Trees(list[Any]):
    """What batches are built of: trees in memory, with the numbers by which steps are planned."""

    def __init__(self, trees: Any):
        super().__init__(trees)
        self.nodes = np.array([len(tree.tree) for tree in self])
        self.targets = np.array([len(tree.node) for tree in self])
        self.examples = np.array([tree.examples for tree in self])
        self.sequence_tokens = np.array([tree.sequence_tokens for tree in self])
        self.attended = self.nodes + [int(tree.tree.position.sum()) for tree in self]


def random_examples(sizes: Sizes, vocabulary: int) -> Iterator[Any]:
    """Four rationales of each document, after all earlier text of it."""
    from rationalyst_jax.train.examples import Example

    rng = np.random.default_rng(0)
    length = sizes.training_row // 5
    for document in range(sizes.examples * sizes.steps // 4):
        text = rng.integers(0, vocabulary, length).tolist()
        for number in range(1, 5):
            rationale = rng.integers(0, vocabulary, RATIONALE).tolist()
            tokens = [*text[: number * length // 4], *rationale]
            weights = [0.0] * (len(tokens) - RATIONALE) + [1.0] * RATIONALE
            yield Example(tokens, weights, str(document))


def training(report: Report, sizes: Sizes, config: LlamaConfig, lora: LoraConfig | None) -> None:
    """Some optimizer steps after the one that compiles, by the first attention that can."""
    from rationalyst_jax.train.batches import Batches, shuffled_steps
    from rationalyst_jax.train.config import TrainConfig
    from rationalyst_jax.train.examples import forest
    from rationalyst_jax.train.step import start_state, take_apart, train_step

    peak = ceiling(report, sizes)
    steps = sizes.steps
    train = TrainConfig(
        steps=steps,
        batch_examples=sizes.examples,
        row_length=sizes.training_row,
        microbatch_rows=4 if lora is None else 2,
        dtype="bfloat16",
        remat="dots",
        lora=lora,
    )
    mesh = mesh_of(train.mesh, jax.devices()[:1])
    trees, _ = forest(random_examples(sizes, config.vocab_size), train.row_length, train.batch_examples)
    store: Any = Trees(trees)
    members = shuffled_steps(store.examples, train.batch_examples, steps, train.seed)
    batches = Batches(store, members, train, mesh)

    def seconds_and_losses(name: str) -> tuple[float, list[float]]:
        """Seconds of all steps but the first, which compiles, and the losses."""
        model = random_model(config, train.master_dtype if lora is None else train.dtype)
        if lora is not None:
            layers = model.layers
            model.adapters = created(lambda: Adapters(layers, lora, rngs=nnx.Rngs(0)), mesh)
        graph, trained, frozen = take_apart(model)
        state = jax.jit(partial(start_state, train, steps), donate_argnums=0)(trained)
        start = time.perf_counter()
        losses = []
        for step in range(steps):
            batch = batches.place(batches[step])
            number = np.int32(step)
            state, metrics = train_step(graph, train, steps, mesh, state, frozen, batch, number)
            losses.append(metrics["loss"])
            if step == 0:
                jax.block_until_ready(metrics)
                report.add(f"first step, {name}", seconds=time.perf_counter() - start)
                start = time.perf_counter()
        losses = jax.device_get(losses)
        return time.perf_counter() - start, [float(loss) for loss in losses]

    timed = range(1, steps)
    nodes, attended, targets = (
        sum(map(count, timed)) for count in (batches.tokens, batches.attended, batches.targets)
    )
    flops = training_flops(config, nodes, attended, targets, lora=lora is not None)
    for name in usable(report, config):
        try:
            with attention_by(name):
                seconds, losses = seconds_and_losses(name)
        except Exception as error:  # the next implementation may do
            report.note(f"failed: {name}: {why(error)}")
            continue
        report.add(
            f"steps, {name}",
            seconds=seconds / len(timed),
            nodes_per_s=nodes / seconds,
            of_matmul=flops / seconds / peak,
            losses=losses,
        )
        break
    memory(report)


def memory(report: Report) -> None:
    stats = jax.devices()[0].memory_stats()
    if stats:
        report.add("peak of the device's memory", gib=stats["peak_bytes_in_use"] / 2**30)


PARTS: dict[str, Callable[[Report, Sizes], None]] = {
    "numerics": numerics,
    "kernels": kernels,
    "filter_1b": lambda report, sizes: filtering(report, sizes, sizes.one, with_peer=True),
    "filter_8b": lambda report, sizes: filtering(report, sizes, sizes.eight, with_peer=False),
    "engine": engine,
    "train_1b": lambda report, sizes: training(report, sizes, sizes.one, None),
    "train_8b": lambda report, sizes: training(report, sizes, sizes.eight, LoraConfig()),
}


def main() -> None:
    part, path, *options = sys.argv[1:]
    if not options and jax.default_backend() != "gpu":
        raise SystemExit(f"JAX has no GPU here, only a {jax.default_backend()}")
    PARTS[part](Report(Path(path)), SMOKE if options == ["--smoke"] else FULL)


if __name__ == "__main__":
    main()
