"""The guided loop on real GSM8K questions: our engine against the same loop on its peers, same weights.

Implicit supervision (the paper's): for each step a rationale, N candidate steps, and a score of each, with
eight few-shot examples before every question. All sides run the package's own `solve`, so they are asked for
the same texts in the same order; they differ in the model behind it. transformers gets its strongest plain
form: requests that wait together in batches, sorted by length and left-padded, `generate` with n sequences, a
forward pass that computes logits for the scored places alone; every call sends its whole prompt. *Apart* is
our engine with nothing to share: the first token of each request is one of its own. Nobody stops early: what
could end a text is suppressed, and no answer is ever found. The weights are random, or with --model real.

Then decoding alone, tokens/s at batch 1, 8 and 64; of a real model cpu_peers.py measures it.

With llama.cpp the same loop runs on its library, too (`llama_cpp_slots.py`): once by the rule of its server,
if that could say how likely a given text is, and once with slots that share what they begin with.

The limit: two FLOPs for each weight and computed token, head included, where a token's logits are asked for.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import decoding
import jax
import numpy as np
import torch
import yaml
from flax import nnx
from measure import arguments, compilations, matmul_peak, peak_memory, print_json, print_table
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import Generation, Handle, ScoreRequest
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.flops import forward_flops
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.weights.hf import save_llama
from rationalyst_jax.lm.weights.open import open_checkpoint
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer, marker_ids
from rationalyst_jax.prompts.prompt import Field, Prompt, PromptSet, load_prompts
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.solve import solve
from rationalyst_jax.reason.traces import mean_ledger
from rationalyst_jax.reason.trajectory import Roles
from rationalyst_jax.roles.role import Role, Sampling
from rationalyst_jax.tasks.question import Question

EXAMPLES, CANDIDATES, STEPS, TOKENS = 8, 3, 6, 24
BATCH = 16  # of the peer: prompts, or sequences to be scored, at once
PROMPT, NEW = 128, 64  # of decoding alone
CELLS = 32768  # of llama.cpp's cache, tokens

# 24 million weights, 20.5 of them the tied embedding of the real vocabulary.
SHAPE = LlamaConfig(
    128256,
    hidden_size=160,
    intermediate_size=640,
    num_layers=10,
    num_heads=10,
    num_kv_heads=5,
    head_dim=16,
    tie_embeddings=True,
    max_position_embeddings=4096,
    bos_token_id=128000,
    eos_token_id=128001,
)


class Peer:
    """A model of `roles/role.py` that answers what waits, and streams nothing."""

    repeatable = False
    positions = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.waiting: list[Handle] = []
        self.tokens = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def submit(self, request: Any) -> Handle:
        self.waiting.append(Handle(request))
        return self.waiting[-1]

    def finish(self, handle: Handle) -> None:
        """Counts a request that has its result."""
        self.tokens += handle.usage.prefilled + handle.usage.generated + handle.usage.scored
        handle.done = True

    def written(self, tokens: list[int]) -> Generation:
        text = str(self.tokenizer.decode(tokens))
        return Generation(tuple(tokens), np.zeros(len(tokens), np.float32), text, "length")

    def cancel(self, handle: Handle) -> None:
        if handle in self.waiting:
            self.waiting.remove(handle)

    def forget(self) -> None: ...

    def flops(self, handle: Handle) -> int:
        return 0


class Transformers(Peer):
    """Answers call by call, each with its whole prompt."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase):
        super().__init__(tokenizer)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        self.model = model.to("cuda") if jax.default_backend() == "gpu" else model
        self.filler = tokenizer.eos_token_id

    def step(self) -> list[Handle]:
        """The kind that most wait for, in batches; requests alike but for their context share one call."""
        kinds: dict[Any, list[Handle]] = {}
        for handle in self.waiting:
            r = handle.request
            key = None if isinstance(r, ScoreRequest) else (r.n, r.temperature, r.max_tokens, r.suppress)
            kinds.setdefault(key, []).append(handle)
        key = max(kinds, key=lambda key: len(kinds[key]))
        chosen = sorted(kinds[key], key=lambda handle: len(handle.request.context))
        self.waiting = [handle for handle in self.waiting if handle not in chosen]
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            with torch.inference_mode():
                self._score(batch) if key is None else self._generate(batch)
            for handle in batch:
                self.finish(handle)
        return chosen

    def _padded(self, rows: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, rows))
        ids = torch.tensor([[self.filler] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return ids.to(self.model.device), mask.to(self.model.device)

    def _generate(self, batch: list[Handle]) -> None:
        r = batch[0].request
        ids, mask = self._padded([handle.request.context for handle in batch])
        sampled = {"do_sample": True, "temperature": r.temperature, "top_k": 0}
        out = self.model.generate(
            ids,
            attention_mask=mask,
            num_return_sequences=r.n,
            max_new_tokens=r.max_tokens,
            min_new_tokens=r.max_tokens,
            suppress_tokens=list(r.suppress) or None,
            pad_token_id=self.filler,
            **(sampled if r.temperature else {"do_sample": False}),
        )[:, ids.shape[1] :].tolist()
        for place, handle in enumerate(batch):
            handle.result = [self.written(row) for row in out[place * r.n : (place + 1) * r.n]]
            handle.usage.generated = r.n * r.max_tokens
            handle.usage.prefilled = len(handle.request.context)

    def _score(self, batch: list[Handle]) -> None:
        requests = [handle.request for handle in batch]
        ids, mask = self._padded([r.context + r.continuation for r in requests])
        most = max(len(r.continuation) for r in requests)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = self.model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=most + 1).logits
        chosen = torch.log_softmax(logits[:, :-1].float(), dim=-1).gather(2, ids[:, -most:, None])[..., 0]
        for handle, row in zip(batch, chosen.cpu().numpy(), strict=True):
            count = len(handle.request.continuation)
            handle.result = row[most - count :]
            handle.usage.prefilled = len(handle.request.context)
            handle.usage.scored = count


class LlamaCpp(Peer):
    """llama.cpp with slots that keep what they computed, and by `rule` share it (`llama_cpp_slots.py`).

    `computed`: tokens that it has run through the model.
    """

    def __init__(self, python: str, gguf: Path, slots: int, rule: str, tokenizer: PreTrainedTokenizerBase):
        super().__init__(tokenizer)
        program = Path(__file__).with_name("llama_cpp_slots.py")
        numbers = torch.get_num_threads(), slots, CELLS
        self.said = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [python, str(program), str(gguf), *map(str, numbers), rule],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
        )
        self.computed = 0
        self._line()

    def _line(self, question: str = "") -> str:
        """What it answers; ends the program with what it said last where it has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            print(question, end="", file=self.process.stdin, flush=True)
        if line := self.process.stdout.readline():
            return line
        self.said.seek(0)
        raise SystemExit(f"llama.cpp has ended: {(self.said.read().splitlines() or ['no word'])[-1]}")

    def step(self) -> list[Handle]:
        """All that wait."""
        chosen, self.waiting = self.waiting, []
        asked = []
        for handle in chosen:
            r = handle.request
            if isinstance(r, ScoreRequest):
                asked.append({"context": r.context, "continuation": r.continuation})
                handle.usage.scored = len(r.continuation)
            else:
                how = {"n": r.n, "new": r.max_tokens, "temperature": r.temperature, "suppress": r.suppress}
                asked.append({"context": r.context} | how)
                handle.usage.generated = r.n * r.max_tokens
            handle.usage.prefilled = len(r.context)
        answer = json.loads(self._line(json.dumps(asked) + "\n"))
        self.computed += answer["computed"]
        for handle, result in zip(chosen, answer["results"], strict=True):
            if isinstance(handle.request, ScoreRequest):
                handle.result = np.array(result[0], np.float32)
            else:
                handle.result = [self.written(tokens) for tokens in result]
            self.finish(handle)
        return chosen


class Apart:
    """Our engine, whose requests have nothing in common: each begins with a token of its own."""

    repeatable = True

    def __init__(self, engine: Engine):
        self._engine = engine
        self._number = 0
        self.positions = engine.positions
        self.step = engine.step
        self.cancel = engine.cancel
        self.forget = engine.forget
        self.flops = engine.flops

    @property
    def tokens(self) -> int:
        return self._engine.tokens

    @property
    def busy(self) -> bool:
        return self._engine.busy

    def submit(self, request: Any) -> Handle:
        self._number += 1
        fields = {**vars(request), "context": (self._number, *request.context[1:])}
        return self._engine.submit(type(request)(**fields))


class Endless(Role):
    """Writes on to the last token that it may."""

    def to_generate(self, prompt: Prompt, fields: Mapping[str, Field], how: Sampling) -> Any:
        return super().to_generate(prompt, fields, replace(how, suppress=ends_of(self.tokenizer)))


def ends_of(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What ends a text: of Llama 3's tokenizer the end of a turn, too."""
    known = tokenizer.get_vocab()
    return tuple(
        dict.fromkeys(
            end for end in (str(tokenizer.eos_token), "<|end_of_text|>", "<|eot_id|>") if end in known
        )
    )


def few_shot(rows: Sequence[Mapping[str, str]], folder: Path) -> PromptSet:
    """The shipped prompts, with solved questions before each question."""
    prompts = load_prompts("llama3")
    chat = [{"role": "system", "content": "Solve the question step by step, one step on each line."}]
    for row in rows:
        chat.append({"role": "user", "content": row["question"]})
        chat.append({"role": "assistant", "content": row["answer"].replace("{", "(").replace("}", ")")})
    chat += [{"role": "user", "content": "{question}"}, {"role": "assistant", "content": "{steps}{step}"}]
    sets: dict[str, Any] = {"step": {"messages": chat}}
    for name in ("rationale", "follow", "follow_guided"):
        sets[name] = {"messages": [{"role": r, "content": c} for r, c in prompts[name].messages]}
    path = folder / "prompts.yaml"
    path.write_text(yaml.safe_dump({"version": "few-shot", "document": prompts.document, "prompts": sets}))
    return load_prompts(path)


def guided(role: Role, questions: list[Question], prompts: PromptSet) -> tuple[float, dict[str, float]]:
    """Seconds, and the ledger of a question."""
    config = ReasonConfig(
        "implicit",
        candidates=CANDIDATES,
        max_steps=STEPS,
        max_step_tokens=TOKENS,
        max_rationale_tokens=TOKENS,
        step_end="turn",
        suppress=ends_of(role.tokenizer),
        block=len(questions),
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        traces = solve(
            questions, Roles(role, role, role), prompts, config, lambda *_: None, Path(folder) / "t.jsonl"
        )
        seconds = time.perf_counter() - start
    assert all(len(trace.steps) == STEPS for trace in traces)
    return seconds, mean_ledger(traces)


def random_prompts(batch: int) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in np.random.default_rng(batch).integers(0, 1000, (batch, PROMPT)).tolist()]


def decoding_alone(
    engine: Engine, peer: Any, tokenizer: PreTrainedTokenizerBase
) -> dict[int, tuple[float, float]]:
    """Tokens/s of both sides, by batch size."""
    ends = tuple(map(int, marker_ids(tokenizer, ends_of(tokenizer))))
    alone = {
        batch: (
            decoding.ours(engine, random_prompts(batch), NEW, ends),
            decoding.by_transformers(peer, random_prompts(batch), NEW, ends[0]),
        )
        for batch in (1, 8, 64)
    }
    print_table(
        f"decoding alone, {NEW} tokens after {PROMPT}",
        ("batch", "ours, tokens/s", "transformers", "ratio"),
        [(str(b), f"{o:.0f}", f"{t:.0f}", f"{o / t:.2f}") for b, (o, t) in alone.items()],
    )
    return alone


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument(
        "--before", type=int, default=0, help="questions that each side solves first, which do not count"
    )
    parser.add_argument("--model", type=Path, help="folder of a Hugging Face checkpoint")
    parser.add_argument(
        "--against",
        nargs="*",
        choices=("apart", "transformers"),
        default=["apart", "transformers"],
        help="sides that run beside ours, and beside llama.cpp where that is given",
    )
    parser.add_argument("--llama_cpp", help="a Python with llama-cpp-cffi and cffi, for llama.cpp")
    parser.add_argument("--gguf", type=Path, help="the checkpoint in float32 as GGUF, for llama.cpp")
    options = parser.parse_args()
    if (options.llama_cpp is None) != (options.gguf is None):
        parser.error("--llama_cpp and --gguf belong together")
    if options.gguf is not None and options.model is None:
        parser.error("--gguf needs --model, the same checkpoint for the other sides")
    from documents import shared_data  # not for who takes only the two sides from here

    shared = shared_data()
    checkpoint = None if options.model is None else open_checkpoint(options.model)
    tokenizer = load_tokenizer(shared / "llama3_tokenizer") if checkpoint is None else checkpoint.tokenizer
    solved = (shared / "gsm8k/train.jsonl").read_text().splitlines()[:EXAMPLES]
    lines = (shared / "gsm8k/test.jsonl").read_text().splitlines()
    questions = [
        Question(str(i), json.loads(line)["question"])
        for i, line in enumerate(lines[: options.before + options.questions])
    ]
    before, questions = questions[: options.before], questions[options.before :]
    model = Llama(SHAPE, rngs=nnx.Rngs(0)) if checkpoint is None else checkpoint.load_for_inference()
    weights = forward_flops(model.config, 1, 0) // 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = few_shot([json.loads(line) for line in solved], folder)
        if checkpoint is None:
            save_llama(model, folder)
        engine = Engine(model, tokenizer, max_sequences=(CANDIDATES + 1) * options.questions)
        engine.warm_up()
        rows = []
        rates = {}
        peak = matmul_peak("float32", 2048)
        sides: dict[str, Any] = {"ours": engine}
        if "apart" in options.against:
            sides["ours, apart"] = Apart(engine)
        if "transformers" in options.against:
            sides["transformers"] = Transformers(folder if checkpoint is None else checkpoint.path, tokenizer)
        if options.gguf is not None:
            slots = 2 * (CANDIDATES + 1) * options.questions  # with half of them beginnings are lost
            for rule in ("server", "shared"):
                sides[f"llama.cpp, {rule}"] = LlamaCpp(
                    options.llama_cpp, options.gguf, slots, rule, tokenizer
                )
        for label, side in sides.items():
            role = Endless(side, tokenizer)
            if before:
                guided(role, before, prompts)
            if isinstance(side, LlamaCpp):
                side.computed = 0
            with compilations() as compiled:
                seconds, used = guided(role, questions, prompts)
            rates[label] = len(questions) / seconds
            print(f"{label}: {seconds:.1f} s", file=sys.stderr, flush=True)
            sent = used["prefilled"] + used["cached"]
            if isinstance(side, LlamaCpp):  # of each text all tokens but the last
                texts = STEPS * (2 * CANDIDATES + 1)
                drawn = sum(count for what, count in used.items() if what.startswith("generated"))
                used["prefilled"] = side.computed / len(questions) - drawn - used["scored"] + texts
            flops = used["flops"] * len(questions) / seconds
            rows.append(
                (
                    label,
                    f"{seconds:.1f}",
                    f"{rates[label]:.3f}",
                    f"{sent:.0f}",
                    f"{used['prefilled']:.0f} ({used['prefilled'] / sent:.1%})",
                    f"{flops / peak:.0%}" if flops else "–",
                    "–" if isinstance(side, LlamaCpp) else f"{peak_memory():.0f}",
                    "–" if isinstance(side, Peer) else str(len(compiled)),
                )
            )
        print_table(
            f"{len(questions)} questions, {EXAMPLES} examples, {STEPS} steps, {CANDIDATES} candidates and "
            f"one rationale a step of {TOKENS} tokens, {weights:,} weights",
            ("", "seconds", "questions/s", "sent", "computed", "of matmul", "peak MiB", "compiled"),
            rows,
            "sent, computed: context tokens of a question, in all its calls\n"
            "peak MiB: of the process up to then",
        )
        for label in list(sides)[1:]:
            print(f"ours / {label}: {rates['ours'] / rates[label]:.2f}")
        alone = {}
        if checkpoint is None and "transformers" in sides:
            alone = decoding_alone(engine, sides["transformers"].model, tokenizer)
    if options.json:
        decode = {
            f"decode_{batch}": {"ours": o, "peer": t, "ratio": o / t} for batch, (o, t) in alone.items()
        }
        apart, peer_rate = rates.get("ours, apart"), rates.get("transformers")
        llama_cpp = {label: rate for label, rate in rates.items() if label.startswith("llama.cpp")}
        more = {"apart": apart, **llama_cpp, **decode}
        print_json("reasoning", "questions/s", rates["ours"], peer_rate, **more)


if __name__ == "__main__":
    main()
