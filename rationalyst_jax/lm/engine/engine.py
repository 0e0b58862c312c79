"""The engine's loop: admit requests, build a ragged batch, dispatch it, read what the one before gave.

The tokens of a request are prefilled in pieces, beside whatever else is going on; its candidates then go on
as branches, one slot each. The device is always one step ahead of what the host has read: a step is built
from what the host knows for sure, how many tokens were asked of each branch; whether a branch has ended by
then, the device knows itself.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.devices.mesh import TENSOR
from rationalyst_jax.lm.devices.sharding import row_shards
from rationalyst_jax.lm.engine.batch import Asked, Begin, Dispatched, pieces, singles
from rationalyst_jax.lm.engine.head import Answers
from rationalyst_jax.lm.engine.pages import NOWHERE, Pages
from rationalyst_jax.lm.engine.requests import (
    GenerateRequest,
    Generation,
    Handle,
    Likeliest,
    Request,
    ScoreRequest,
)
from rationalyst_jax.lm.engine.runs import Branch, Memory, Run, fitting_pages
from rationalyst_jax.lm.engine.step import copy_pages, decode_steps, mixed_step, new_state
from rationalyst_jax.lm.engine.text import Kinds, Text
from rationalyst_jax.lm.model.flops import forward_flops
from rationalyst_jax.lm.model.llama import Llama


@dataclass
class _Open:
    """A request that is not done: its runs so far; how many candidates or log-probabilities are missing."""

    missing: int
    runs: list[Run] = field(default_factory=list)


class Engine:
    """Generates and scores with one model; weights that change later are not seen.

    rows: candidates that are generated at once. A step takes at most one token of each, and `pieces` pieces
    of `piece` tokens of prompts or scored text. steps: tokens of each that are decoded in one dispatch where
    no prompt waits; the attribute may be set lower meanwhile, to read tokens as they come. pages: of
    `page_size` tokens; by default what fits in `memory`, a share of the device's free one. alternatives: the
    most that a request may ask for. mesh: over whose axis `tensor` weights and heads are divided; its other
    axes must be 1 (ValueError).
    """

    repeatable = True  # equal requests in equal order, after `forget`, have equal results

    def __init__(
        self,
        model: Llama,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rows: int = 64,
        pieces: int = 16,
        piece: int = 32,
        steps: int = 16,
        page_size: int = 16,
        pages: int | None = None,
        memory: float = 0.9,
        alternatives: int = 0,
        mesh: Mesh | None = None,
    ):
        if mesh is not None and row_shards(mesh) > 1:
            raise ValueError(
                f"engine: only the axis {TENSOR} of a mesh can be more than 1, got {dict(mesh.shape)}"
            )
        config = model.config
        self.model, self.tokenizer = model, tokenizer
        self._graph, self._weights = nnx.split(model)
        pages = pages or fitting_pages(model, page_size, rows, memory, mesh)
        self.pages = Pages(pages, page_size)
        self._memory = Memory(self.pages, config.max_position_embeddings)
        self._rows, self._row_sizes = rows, sorted({max(1, rows // 8), rows})
        self._piece, self._piece_sizes = piece, sorted({max(1, pieces // 8), pieces})
        self._most_steps, self._alternatives, self._mesh = steps, alternatives, mesh
        self.steps = steps
        sizes = {"pages": pages, "page_size": page_size, "slots": rows}
        self._state = new_state(config, model.embed_VD.dtype, **sizes, mesh=mesh)
        self._first_pages = jnp.arange(config.num_layers, dtype=jnp.int32) * (pages + 1)
        eos = config.eos_token_id if isinstance(config.eos_token_id, tuple) else (config.eos_token_id,)
        ends = (*eos, cast("int | None", tokenizer.eos_token_id))
        self._text = Text(tokenizer, config.vocab_size, frozenset(end for end in ends if end is not None))
        self._check_ids("end of sequence", tuple(self._text.eos))
        self._kinds = Kinds(self._text)

        self._open: dict[Handle, _Open] = {}
        self._waiting: deque[tuple[Handle, range]] = deque()  # with which candidates
        self._prefilling: list[Run] = []
        self._branches: dict[int, Branch] = {}  # at work, by slot
        self._slots = list(range(rows - 1, -1, -1))  # nobody's
        self._unread: deque[Dispatched] = deque()
        self._finished: list[Handle] = []
        self.tokens = 0  # computed so far, of contexts and continuations

    @property
    def positions(self) -> int:
        """The most tokens of a sequence: what the model has positions for, and the cache room."""
        return self._memory.positions

    # ---- Asking ----

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Generation]]:
        """The n candidates of each request, in order. Raises ValueError as `submit`."""
        return self._all(requests)

    def score(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        """Log-probabilities (nats, float32) of each request's continuation, token by token, in order.

        Raises ValueError as `submit`.
        """
        return self._all(requests)

    def _all(self, requests: Sequence[Request]) -> list[Any]:
        for request in requests:
            self._check(request)
        handles = [self.submit(request) for request in requests]
        for handle in handles:
            while not handle.done:
                self.step()
        return [handle.result for handle in handles]

    def submit(self, request: Request) -> Handle:
        """Takes a request; `step` works on it.

        Raises ValueError for an id outside the model's vocabulary, a text beyond its positions, and a request
        that the cache could not hold alone.
        """
        self._check(request)
        handle = Handle(request)
        if isinstance(request, ScoreRequest):
            handle.result = np.zeros(len(request.continuation), np.float32)
            handle.likeliest = [()] * len(handle.result) if request.alternatives else []
        else:
            handle.result = [Generation((), np.zeros(0, np.float32), "", "length")] * request.n
        self._open[handle] = _Open(len(handle.result))
        if len(request.context) < self._memory.positions:
            self._waiting.extend((handle, part) for part in self._parts(request))
        else:
            self._close(handle)
        return handle

    def written(self, handle: Handle) -> list[Generation | Branch]:
        """Each candidate of a generation so far: a Branch, of which more may come, or what came of it."""
        written = list(handle.result)
        for run in self._open[handle].runs if not handle.done else ():
            for branch in run.branches:
                if not branch.ended:
                    written[branch.candidate] = branch
        return written

    def cancel(self, handle: Handle) -> None:
        """Forgets a request; its pages are free again. A finished one stays finished."""
        if handle.done:
            return
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not handle)
        for run in self._open[handle].runs:
            if run in self._prefilling:
                self._prefilling.remove(run)
            for branch in run.branches:
                if not branch.ended:
                    self._end(branch)
            self._leave(run)
        handle.result = None
        self._close(handle)

    def flops(self, handle: Handle) -> int:
        """Operations a request took (`lm/model/flops.py`). A token that ended a candidate is not computed."""
        used, n = handle.usage, len(handle.result)
        scored = isinstance(handle.request, ScoreRequest)
        tokens = used.prefilled + max(0, used.scored - 1 if scored else used.generated - n)
        return forward_flops(self.model.config, tokens, used.attended, used.generated + used.scored)

    # ---- Working ----

    @property
    def busy(self) -> bool:
        """Whether there is anything to do, or to be told."""
        return bool(self._waiting or self._prefilling or self._branches or self._unread or self._finished)

    def step(self) -> list[Handle]:
        """One round: admits, dispatches, reads the dispatch before. Gives the requests that are done now."""
        self._admit()
        if dispatched := self._dispatch():
            self._unread.append(dispatched)
        if self._unread and (dispatched is None or len(self._unread) > 1):
            self._read(self._unread.popleft())
        finished, self._finished = self._finished, []
        return finished

    def forget(self) -> None:
        """Empties the cache but for what is at work.

        What comes then does not depend on what was asked before, not in the last bit either: shapes differ
        with what is found in the cache, and rounding with shapes.
        """
        self.pages.forget()

    def warm_up(self) -> None:
        """Compiles every program that may be needed, by computing nothing."""
        self._decode([], 1, 0)
        for D in self._row_sizes:
            self._decode([], D, 0)
            for B in self._piece_sizes:
                self._mix([], [], D, B)
        self._copy([])

    # ---- Admission ----

    def _check(self, request: Request) -> None:
        """Raises ValueError for a request that can never be served."""
        if request.alternatives > self._alternatives:
            raise ValueError(f"alternatives: {request.alternatives}, {self._alternatives} is the most here")
        if isinstance(request, ScoreRequest):
            ids = request.context + request.continuation
            self._check_ids("score", ids + request.suppress)
            if len(ids) > self._memory.positions:
                raise ValueError(f"score: {len(ids)} tokens, {self._memory.positions} is the most")
        else:
            self._check_ids("generate", request.context + request.suppress + request.stop_ids)
            room = self.model.config.max_position_embeddings - len(request.context)
            if room <= 0:
                return
            if len(request.context) + min(room, request.max_tokens) > self._memory.positions:
                tokens = f"{len(request.context)} tokens and {request.max_tokens} new ones"
                raise ValueError(f"{tokens} do not fit in the cache, {self._memory.positions} are the most")
        needed = max(self._memory.needed(request, len(part)) for part in self._parts(request))
        if needed > self.pages.number:
            raise ValueError(f"the request may need {needed} pages, the cache has {self.pages.number}")

    def _check_ids(self, what: str, ids: tuple[int, ...]) -> None:
        V = self.model.config.vocab_size
        for token in ids:
            if not 0 <= token < V:
                raise ValueError(f"{what}: token id {token} is outside the model's vocabulary of {V}")

    def _parts(self, request: Request) -> list[range]:
        """The candidates of a request, as many at a time as there are slots."""
        n = request.n if isinstance(request, GenerateRequest) else 1
        return [range(start, min(n, start + self._rows)) for start in range(0, n, self._rows)]

    def _admit(self) -> None:
        """Lets in who waits, first come, first served."""
        while self._waiting:
            handle, part = self._waiting[0]
            slots = len(part) if isinstance(handle.request, GenerateRequest) else 0
            if slots > len(self._slots) or (kind := self._kinds.take(handle.request)) is None:
                return
            if (run := self._memory.begin(handle, len(part))) is None:
                self._kinds.give_back(kind)
                return
            self._waiting.popleft()
            run.kind = kind
            for candidate in part[:slots]:
                run.branches.append(Branch(run, candidate, self._slots.pop(), run.table.copy()))
            self._open[handle].runs.append(run)
            self._prefilling.append(run)

    # ---- Dispatch ----

    def _dispatch(self) -> Dispatched | None:
        branches = [branch for branch in self._branches.values() if branch.left]
        D = next(size for size in self._row_sizes if size >= len(branches))
        if parts := self._next_parts():
            B = next(size for size in self._piece_sizes if size >= len(parts))
            return self._mix(branches, parts, D, B)
        if branches:
            steps = max(1, self.steps // 4) if self._waiting else self.steps
            D = 1 if len(branches) == 1 else D
            return self._decode(branches, D, min(steps, max(branch.left for branch in branches)))
        return None

    def _next_parts(self) -> list[tuple[Run, int, int]]:
        """What runs have to be computed next, in the order of their arrival."""
        parts: list[tuple[Run, int, int]] = []
        for run in self._prefilling:
            while len(parts) < self._piece_sizes[-1]:
                start, stop = self._memory.advance(run, self._piece)
                if start == stop:
                    break
                parts.append((run, start, stop))
        return parts

    def _mix(self, branches: list[Branch], parts: list[tuple[Run, int, int]], D: int, B: int) -> Dispatched:
        """One token of each branch, and parts of runs; those of which nothing is left to compute go on."""
        asked = Asked(self._rows + B * self._piece)
        begin = Begin.common([b.run.path for b in branches] + [run.path for run, _, _ in parts])
        single = singles(branches, begin, self._memory, D, 1, nobody=self._rows)
        piece = pieces(parts, begin, self._memory, B, self._piece)
        for d, branch in enumerate(branches):
            asked.sample(d, branch)
        complete, copies = [], []
        for b, (run, start, stop) in enumerate(parts):
            place = D + b * self._piece - start
            self.tokens += stop - start
            run.computed += max(0, min(stop, run.asked + 1) - start)
            run.handle.usage.attended += _attended(start, stop)
            if isinstance(run.handle.request, ScoreRequest):
                for i in range(max(run.asked, start), stop):
                    target = run.handle.request.continuation[i - run.asked]
                    asked.score(place + i, run, i - run.asked, target)
            elif stop == len(run.tokens):
                copies += self._memory.fork(run)
                for branch in run.branches:
                    asked.sample(place + run.asked, branch, fresh=True)
            if stop == len(run.tokens):
                complete.append(run)
        self._state, answers = mixed_step(
            *(self._graph, self._weights, self._state, self._kinds.on_device()),
            *(begin.trunk(self._memory.width), single, piece, asked.entries()),
            Z=self._alternatives,
            mesh=self._mesh,
        )
        if copies:
            self._copy(copies)
        for branch in branches:
            branch.position += 1
            branch.left -= 1
        for run in complete:
            self._prefilling.remove(run)
            run.handle.usage.prefilled += run.computed
            run.handle.usage.cached += len(run.handle.request.context) - run.computed
            for branch in run.branches:
                branch.left -= 1
                self._branches[branch.slot] = branch
            if not run.branches:
                self._leave(run)
        return Dispatched(answers, asked.whose)

    def _decode(self, branches: list[Branch], D: int, steps: int) -> Dispatched:
        """Some tokens of each branch."""
        asked = Asked(D)
        for d, branch in enumerate(branches):
            asked.sample(d, branch)
        begin = Begin.common([branch.run.path for branch in branches])
        single = singles(branches, begin, self._memory, D, steps, nobody=self._rows)
        self._state, answers = decode_steps(
            *(self._graph, self._weights, self._state, self._kinds.on_device()),
            *(begin.trunk(self._memory.width), single, asked.entries(), np.int32(steps)),
            most=self._most_steps,
            Z=self._alternatives,
            mesh=self._mesh,
        )
        for branch in branches:
            taken = min(steps, branch.left)
            branch.position += taken
            branch.left -= taken
        return Dispatched(answers, asked.whose, steps)

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        pairs = np.full((2, self._rows), NOWHERE, np.int32)
        pairs[:, : len(copies)] = np.array(copies, np.int32).reshape(-1, 2).T
        self._state = copy_pages(self._state, *pairs, self._first_pages)

    # ---- Reading ----

    def _read(self, step: Dispatched) -> None:
        """Waits for the outputs of a step and hands them to whom they belong."""
        answers = jax.device_get(step.answers)
        if step.steps is None:
            answers = jax.tree.map(lambda x: x[None], answers)
        for place, whose in enumerate(step.whose):
            if isinstance(whose, Branch):
                self._take(whose, jax.tree.map(lambda x, p=place: x[: step.steps or 1, p], answers))
            elif not whose[0].handle.done:
                run, index = whose
                handle = run.handle
                handle.result[index] = answers.logprob_A[0, place]
                if handle.request.alternatives:
                    handle.likeliest[index] = _likeliest(answers, handle.request, 0, place)
                handle.usage.scored += 1
                self._got(handle)

    def _take(self, branch: Branch, answers: Answers) -> None:
        """New tokens of a branch, one after the other, up to that which ends it."""
        if branch.ended:
            return
        most, over = self._memory.most(branch.request), False
        tokens, logprobs = answers.token_A.tolist(), answers.logprob_A.tolist()
        for place, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            self.tokens += 1
            branch.tokens.append(token)
            branch.logprobs.append(logprob)
            if branch.request.alternatives:
                branch.likeliest.append(_likeliest(answers, branch.request, place))
            if over := self._kinds.ends(branch.run.kind, token) or len(branch.tokens) == most:
                break
        if not over and not self._text.stopped(branch.tokens, branch.request):
            return
        handle = branch.run.handle
        written = branch.tokens, branch.logprobs, branch.likeliest
        generation = self._text.generation(*written, branch.request)
        handle.result[branch.candidate] = generation
        handle.usage.generated += len(generation.tokens)
        first = len(branch.request.context)
        handle.usage.attended += _attended(first, first + len(generation.tokens) - 1)
        self._end(branch)
        if all(other.ended for other in branch.run.branches):
            self._leave(branch.run)
        self._got(handle)

    def _got(self, handle: Handle) -> None:
        """One result more."""
        self._open[handle].missing -= 1
        if not self._open[handle].missing:
            self._close(handle)

    # ---- Leaving ----

    def _end(self, branch: Branch) -> None:
        branch.ended = True
        self._branches.pop(branch.slot, None)
        self._slots.append(branch.slot)
        self._memory.end(branch)

    def _leave(self, run: Run) -> None:
        if not run.left:
            self._memory.leave(run)
            self._kinds.give_back(run.kind)

    def _close(self, handle: Handle) -> None:
        handle.done = True
        self._open.pop(handle)
        self._finished.append(handle)


def _likeliest(answers: Answers, request: Request, *place: int) -> Likeliest:
    """The likeliest tokens at a place that are possible at all, as many as the request asks for."""
    count = request.alternatives
    tokens, logprobs = answers.likeliest_AZ[place][:count], answers.likeliest_logprob_AZ[place][:count]
    pairs = zip(tokens.tolist(), logprobs.tolist(), strict=True)
    return tuple((token, logprob) for token, logprob in pairs if logprob > -math.inf)


def _attended(start: int, stop: int) -> int:
    """Keys seen by tokens from one place up to another."""
    return (stop * (stop + 1) - start * (start + 1)) // 2
