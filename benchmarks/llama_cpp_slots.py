"""llama.cpp answering requests from slots that keep what they computed: a program that reasoning.py starts.

    PYTHON benchmarks/llama_cpp_slots.py FILE.gguf THREADS SLOTS CELLS server|shared

PYTHON is one with the packages llama-cpp-cffi and cffi; nothing of this project is imported. A line of
requests in gives a line of results out. A request has `context` (token ids), and `continuation`, whose
log-probabilities are asked for, or `n`, `new`, `temperature` and `suppress`: so many texts of so many tokens,
without some.

llama.cpp's own server is not in that package, and gives no probabilities of a text that is handed to it. As
`server` this does what the server does: slots keep their tokens, a request gets the free slot that has most
of its beginning (where that is less than a tenth, the one that was idle longest), and prompts and single
tokens of all slots share a batch of 2,048. As `shared` it does more: a beginning is taken over
from any slot, also from one at work, and a request waits while another one computes what both begin with.
Keys and values are float16, llama.cpp's default, under its flash attention. All slots' keys and values lie in
one cache of CELLS tokens, as in the package's llama.cpp; later ones can keep each slot's by themselves.
"""

import json
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from llama.llama_cpp import ffi, lib  # pyright: ignore[reportMissingImports]

BATCH = 2048  # tokens, the server's default
ALIKE = 0.1  # least part of a prompt for which the server prefers a slot
WORTH = 32  # tokens that a request waits for rather than compute them, too


@dataclass
class Slot:
    """A sequence of llama.cpp's cache: the tokens that are in it, and the work that it has, if any."""

    number: int
    tokens: list[int] = field(default_factory=list)
    job: "Job | None" = None
    used: int = 0


@dataclass
class Job:
    """Of the prompt's tokens from `scored` on the log-probabilities, or else `new` tokens after it, drawn at
    `temperature`, none of `suppress`."""

    request: int
    prompt: list[int]
    scored: int
    new: int
    temperature: float = 0.0
    suppress: list[int] = field(default_factory=list)
    found: list[float] = field(default_factory=list)
    drawn: list[int] = field(default_factory=list)


class Slots:
    def __init__(self, file: str, threads: int, slots: int, cells: int, shares: bool):
        lib.llama_backend_init()
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = 0
        model = lib.llama_model_load_from_file(file.encode(), parameters)
        if model == ffi.NULL:
            sys.exit(f"llama.cpp does not load {file}")
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        parameters = lib.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_seq_max = cells, BATCH, slots
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.flash_attn = True
        self.context = lib.llama_init_from_model(model, parameters)
        self.batch = lib.llama_batch_init(BATCH, 0, 1)
        self.slots = [Slot(number) for number in range(slots)]
        self.shares = shares
        self.random = np.random.default_rng(0)
        self.steps = self.computed = 0

    def answer(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        jobs = deque(job for number, request in enumerate(requests) for job in jobs_of(number, request))
        results: list[list[Any]] = [[] for _ in requests]
        self.computed = 0
        while jobs or any(slot.job for slot in self.slots):
            self.admit(jobs)
            for job in self.step():
                results[job.request].append(job.drawn or job.found)
        return {"results": results, "computed": self.computed}

    def admit(self, jobs: deque[Job]) -> None:
        """Gives the jobs to free slots, as long as there are some."""
        for _ in range(len(jobs)):
            free = [slot for slot in self.slots if slot.job is None]
            if not free:
                return
            job = jobs.popleft()
            beginning = job.prompt[: (job.scored or len(job.prompt)) - 1]
            found = self.sharing(beginning, free) if self.shares else alone(beginning, free)
            if found is None:
                jobs.append(job)
                continue
            slot, common = found
            lib.llama_kv_self_seq_rm(self.context, slot.number, common, -1)
            slot.tokens, slot.job = job.prompt[:common], job

    def sharing(self, beginning: list[int], free: list[Slot]) -> tuple[Slot, int] | None:
        """A slot with as much of a beginning as any slot has, and how many tokens that is; None where more is
        being computed."""
        common, source = max(
            ((shared(slot.tokens, beginning), slot) for slot in self.slots),
            key=lambda found: (found[0], found[1].job is None),
        )
        soon = (shared(slot.job.prompt, beginning) for slot in self.slots if slot.job)
        if max(soon, default=0) >= common + WORTH:
            return None
        # Where it is, if that slot is free and holds little else; or else where it was idle longest.
        slot = min(free, key=lambda slot: slot.used)
        if source.job is None and len(source.tokens) < common + WORTH:
            slot = source
        elif slot is not source:
            lib.llama_kv_self_seq_rm(self.context, slot.number, -1, -1)
            lib.llama_kv_self_seq_cp(self.context, source.number, slot.number, 0, common)
        return slot, common

    def step(self) -> list[Job]:
        """One batch: a token of each slot that draws, and as much of the prompts as has room."""
        self.steps += 1
        at_work = [(slot, slot.job) for slot in self.slots if slot.job]
        at_work.sort(key=lambda found: not found[1].drawn)
        asked: list[tuple[int, Job, int | None]] = []
        batch = self.batch
        batch.n_tokens = 0
        for slot, job in at_work:
            text = job.prompt + job.drawn
            # The last token is computed only where one is drawn after it.
            end = len(text) if job.new else len(text) - 1
            for place in range(len(slot.tokens), min(end, len(slot.tokens) + BATCH - batch.n_tokens)):
                i = batch.n_tokens
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = text[place], place, 1
                batch.seq_id[i][0] = slot.number
                wanted = None
                if job.scored and place + 1 >= job.scored:
                    wanted = text[place + 1]
                batch.logits[i] = wanted is not None or (job.new > 0 and place + 1 == len(text))
                if batch.logits[i]:
                    asked.append((i, job, wanted))
                slot.tokens.append(text[place])
                batch.n_tokens += 1
            slot.used = self.steps
        self.computed += batch.n_tokens
        self.decode()
        for i, job, wanted in asked:
            row = lib.llama_get_logits_ith(self.context, i)
            logits = np.frombuffer(ffi.buffer(row, self.vocabulary * 4), np.float32)
            if wanted is None:
                job.drawn.append(self.draw(logits, job))
            else:
                top = logits.max()
                job.found.append(float(logits[wanted] - top - np.log(np.exp(logits - top).sum())))
        done = []
        for slot, job in at_work:
            if len(job.drawn) == job.new and len(slot.tokens) >= len(job.prompt) - 1:
                done.append(job)
                slot.job = None
        return done

    def draw(self, logits: np.ndarray, job: Job) -> int:
        logits = logits.copy()
        logits[job.suppress] = -np.inf
        if not job.temperature:
            return int(logits.argmax())
        mass = np.exp((logits - logits.max()) / job.temperature).cumsum()
        return int(mass.searchsorted(self.random.random() * mass[-1], side="right"))

    def decode(self) -> None:
        """Where cells are short, what has been idle longest is given up."""
        while (code := lib.llama_decode(self.context, self.batch)) == 1:
            idle = [slot for slot in self.slots if slot.job is None and slot.tokens]
            if not idle:
                sys.exit("llama.cpp: too few cells for the slots at work")
            slot = min(idle, key=lambda slot: slot.used)
            lib.llama_kv_self_seq_rm(self.context, slot.number, -1, -1)
            slot.tokens = []
        if code:
            sys.exit(f"llama.cpp does not decode: {code}")


def alone(beginning: list[int], free: list[Slot]) -> tuple[Slot, int]:
    """The server's choice of a slot, and how many tokens of a beginning it has."""
    slot = max(free, key=lambda slot: shared(slot.tokens, beginning))
    if shared(slot.tokens, beginning) < ALIKE * len(beginning):
        slot = min(free, key=lambda slot: slot.used)
    return slot, shared(slot.tokens, beginning)


def jobs_of(number: int, request: dict[str, Any]) -> list[Job]:
    context = request["context"]
    if "continuation" in request:
        return [Job(number, context + request["continuation"], len(context), 0)]
    how = {name: request[name] for name in ("new", "temperature", "suppress")}
    return [Job(number, context, 0, **how) for _ in range(request["n"])]


def shared(a: list[int], b: list[int]) -> int:
    """Tokens with which both begin."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


if __name__ == "__main__":
    slots = Slots(sys.argv[1], *map(int, sys.argv[2:5]), shares=sys.argv[5] == "shared")
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(slots.answer(json.loads(line))), flush=True)
