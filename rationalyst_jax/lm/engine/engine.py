"""The engine's loop: admit requests, build a ragged batch, dispatch it, read what the one before gave.

The prompt of a request is prefilled in chunks, beside whatever else is going on; its candidates then go on as
sequences, one slot each. The device is always one step ahead of what the host has read: a step is built from
what the host knows for sure, how many tokens were asked of each sequence; whether a sequence has ended by
then, the device knows itself.
"""

import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.devices.mesh import TENSOR
from rationalyst_jax.lm.devices.sharding import row_shards
from rationalyst_jax.lm.engine.batch import (
    Chunk,
    CommonPath,
    Dispatched,
    Entries,
    ScoredToken,
    decode_batch,
    prefill_batch,
)
from rationalyst_jax.lm.engine.head import HeadOutputs
from rationalyst_jax.lm.engine.prefix_cache import NULL_PAGE, PAGE_SIZE, PrefixCache
from rationalyst_jax.lm.engine.requests import (
    GenerateRequest,
    Generation,
    Handle,
    Likeliest,
    Request,
    ScoreRequest,
    request_flops,
)
from rationalyst_jax.lm.engine.sequences import (
    NO_SLOT,
    CacheManager,
    CandidateSequence,
    SequenceGroup,
    fitting_pages,
)
from rationalyst_jax.lm.engine.step import copy_pages, decode_steps, mixed_step, new_state
from rationalyst_jax.lm.engine.text import Detokenizer, TokenMasks
from rationalyst_jax.lm.model.flops import attended_keys
from rationalyst_jax.lm.model.llama import Llama, lay_out

LOOKAHEAD = 128  # groups of the queue that a step looks at
MOST_PASSED = 64  # how often a group that waits is passed by younger ones


@dataclass
class _Open:
    """A request that is not done: its groups; how many candidates or log-probabilities are missing."""

    missing: int
    groups: list[SequenceGroup] = field(default_factory=list)


class Engine:
    """Generates and scores with one model; weights that change later are not seen.

    max_sequences: candidates that are generated at once. A step takes at most one token of each, and
    `prefill_chunks` chunks of `chunk_size` tokens of prompts or scored text. steps: tokens of each that are
    decoded in one dispatch where no prompt waits. pages: of `page_size` tokens; by default what fits in
    `memory`, a share of the device's free one. alternatives: the most that a request may ask for. mesh: over
    whose axis `tensor` weights and heads are divided; its other axes must be 1 (ValueError).
    """

    repeatable = True  # equal requests in equal order, after `forget`, have equal results

    def __init__(
        self,
        model: Llama,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_sequences: int = 64,
        prefill_chunks: int = 16,
        chunk_size: int = 32,
        steps: int = 16,
        page_size: int = PAGE_SIZE,
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
        self.model = nnx.clone(model)  # the caller's keeps its layout
        lay_out(self.model, mesh)
        self.tokenizer = tokenizer
        self._graph, self._weights = nnx.split(self.model)
        self._mesh = mesh
        self._alternatives = alternatives

        # The sizes that steps are compiled for: few, since each is a program.
        self._max_sequences = max_sequences
        self._decode_sizes = sorted({max(1, max_sequences // 8), max_sequences})
        self._prefill_sizes = sorted({max(1, prefill_chunks // 8), prefill_chunks})
        self._chunk_size = chunk_size
        self._most_steps = steps

        pages = pages or fitting_pages(model, page_size, max_sequences, memory, mesh)
        self.prefix_cache = PrefixCache(pages, page_size)
        self._manager = CacheManager(self.prefix_cache, config.max_position_embeddings)
        sizes = {"pages": pages, "page_size": page_size, "slots": max_sequences}
        self._state = new_state(config, model.embed_VD.dtype, **sizes, mesh=mesh)
        self._first_page_L = jnp.arange(config.num_layers, dtype=jnp.int32) * (pages + 1)

        own = () if tokenizer.eos_token_id is None else (cast(int, tokenizer.eos_token_id),)
        self._detokenizer = Detokenizer(tokenizer, config.vocab_size, frozenset((*config.ends, *own)))
        self._check_ids("end of sequence", tuple(self._detokenizer.eos))
        self._masks = TokenMasks(self._detokenizer)

        self._arrivals = count()
        self._open: dict[Handle, _Open] = {}
        self._waiting: list[SequenceGroup] = []  # the oldest first
        self._prefilling: list[SequenceGroup] = []
        self._decoding: dict[int, CandidateSequence] = {}  # by slot
        self._free_slots = list(range(max_sequences - 1, -1, -1))
        self._unread: deque[Dispatched] = deque()
        self._finished: list[Handle] = []
        self.tokens = 0  # computed so far, of contexts and continuations

    @property
    def positions(self) -> int:
        """The most tokens of a sequence: what the model has positions for, and the cache room."""
        return self._manager.max_positions

    # ---- Asking ----

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Generation]]:
        """The n candidates of each request, in order. Raises ValueError as `submit`."""
        return self._all(requests)

    def score(
        self, requests: Sequence[ScoreRequest], working: Callable[[], None] = lambda: None
    ) -> list[np.ndarray]:
        """Log-probabilities (nats, float32) of each request's continuation, token by token, in order.

        `working` is called after every step. Raises ValueError as `submit`.
        """
        return self._all(requests, working)

    def _all(self, requests: Sequence[Request], working: Callable[[], None] = lambda: None) -> list[Any]:
        for request in requests:
            self._check(request)
        handles = [self.submit(request) for request in requests]
        for handle in handles:
            while not handle.done:
                self.step()
                working()
        return [handle.result for handle in handles]

    def submit(self, request: Request, *, stream: bool = False) -> Handle:
        """Takes a request; `step` works on it. With `stream` a step decodes one token of each sequence only.

        Raises ValueError for an id outside the model's vocabulary, a text beyond its positions, and one that
        the cache could not hold alone.
        """
        self._check(request)
        handle = Handle(request, stream=stream)
        arrival = next(self._arrivals)
        first_read = len(request.context) - 1
        if isinstance(request, ScoreRequest):
            handle.result = np.zeros(len(request.continuation), np.float32)
            handle.likeliest = [()] * len(handle.result) if request.alternatives else []
            prompt = request.context + request.continuation[:-1]
            groups = [SequenceGroup(handle, arrival, prompt, first_read)]
        else:
            handle.result = [Generation((), np.zeros(0, np.float32), "", "length")] * request.n
            groups = []
            for part in self._parts(request):
                group = SequenceGroup(handle, arrival, request.context, first_read)
                group.sequences = [CandidateSequence(group, candidate) for candidate in part]
                groups.append(group)
        self._open[handle] = _Open(len(handle.result), groups)
        if len(request.context) < self._manager.max_positions:
            self._waiting.extend(groups)
        else:
            self._close(handle)
        return handle

    def written(self, handle: Handle) -> list[Generation | CandidateSequence]:
        """Each candidate so far: a sequence, of which more may come, or the generation that came of it."""
        written = list(handle.result)
        for group in self._open[handle].groups if not handle.done else ():
            for sequence in group.sequences:
                if not sequence.ended:
                    written[sequence.candidate] = sequence
        return written

    def cancel(self, handle: Handle) -> None:
        """Forgets a request; its pages are free again. A finished one stays finished."""
        if handle.done:
            return
        self._waiting = [group for group in self._waiting if group.handle is not handle]
        self._prefilling = [group for group in self._prefilling if group.handle is not handle]
        for group in self._open[handle].groups:
            for sequence in group.sequences:
                sequence.ended = True
                if sequence.slot != NO_SLOT:
                    self._vacate(sequence)
            if group.at_work:
                self._release(group)
        handle.result = None
        self._close(handle)

    def flops(self, handle: Handle) -> int:
        """Operations a finished request took."""
        return request_flops(self.model.config, handle)

    # ---- Working ----

    @property
    def busy(self) -> bool:
        """Whether there is anything to do, or to be told."""
        return bool(self._waiting or self._prefilling or self._decoding or self._unread or self._finished)

    def step(self) -> list[Handle]:
        """One round. Gives the requests that are done now."""
        # 1. Pages for the next tokens of all sequences; where they are short, the youngest is preempted.
        steps = self._steps()
        sequences, short = self._grow(steps)
        # 2. Admit requests that wait, unless those at work need all pages.
        if not short:
            self._admit()
        # 3. Dispatch what all these need next.
        dispatched = self._dispatch(sequences, steps)
        if dispatched is not None:
            self._unread.append(dispatched)
        # 4. Read the dispatch before, while the device works on this one.
        if self._unread and (dispatched is None or len(self._unread) > 1):
            self._read(self._unread.popleft())
        # 5. Tell who is done.
        finished = self._finished
        self._finished = []
        return finished

    def forget(self) -> None:
        """Empties the cache but for what is at work.

        What comes then does not depend on what was asked before, not in the last bit either: shapes differ
        with what is found in the cache, and rounding with shapes.
        """
        self.prefix_cache.forget()

    def warm_up(self) -> None:
        """Compiles every program that may be needed, by computing nothing."""
        self._decode([], 1, 0)
        for B in self._decode_sizes:
            self._decode([], B, 0)
            for C in self._prefill_sizes:
                self._mix([], [], B, C)
        self._copy([])

    # ---- Admission ----

    def _check(self, request: Request) -> None:
        """Raises ValueError for a request that can never be served."""
        if request.alternatives > self._alternatives:
            raise ValueError(f"alternatives: {request.alternatives}, {self._alternatives} is the most here")
        most = self._manager.max_positions
        if isinstance(request, ScoreRequest):
            ids = request.context + request.continuation
            self._check_ids("score", ids + request.suppress)
            if len(ids) > most:
                raise ValueError(f"score: {len(ids)} tokens, {most} is the most")
        else:
            self._check_ids("generate", request.context + request.suppress + request.stop_ids)
            room = self.model.config.max_position_embeddings - len(request.context)
            if room <= 0:
                return
            if len(request.context) + min(room, request.max_tokens) > most:
                tokens = f"{len(request.context)} tokens and {request.max_tokens} new ones"
                raise ValueError(f"{tokens} do not fit in the cache, {most} are the most")

    def _check_ids(self, what: str, ids: tuple[int, ...]) -> None:
        V = self.model.config.vocab_size
        for token in ids:
            if not 0 <= token < V:
                raise ValueError(f"{what}: token id {token} is outside the model's vocabulary of {V}")

    def _parts(self, request: GenerateRequest) -> list[range]:
        """The candidates of a request, as many at a time as there are slots and pages for."""
        most = min(self._max_sequences, self._manager.most_candidates(request))
        return [range(start, min(request.n, start + most)) for start in range(0, request.n, most)]

    def _admit(self) -> None:
        """Lets in who waits, first come, first served.

        Younger ones that need less may pass one for which there is no room yet, so that a short request does
        not wait for the end of long ones; but not for ever.
        """
        passed: list[SequenceGroup] = []
        for group in self._waiting[:LOOKAHEAD]:
            if any(other.passed == MOST_PASSED for other in passed):
                return
            if not self._start(group):
                passed.append(group)
                continue
            self._waiting.remove(group)
            for other in passed:
                other.passed += 1

    def _start(self, group: SequenceGroup) -> bool:
        """Gives a group slots, a token mask and pages. Whether there are enough; if not, nothing happens."""
        if len(group.sequences) > len(self._free_slots) or not self._manager.has_pages(group):
            return False
        mask = self._masks.take(group.handle.request)
        if mask is None:
            return False
        self._manager.admit(group)
        group.mask = mask
        for sequence in group.sequences:
            sequence.slot = self._free_slots.pop()
        self._prefilling.append(group)
        return True

    # ---- Growth ----

    def _steps(self) -> int:
        """How many tokens of each sequence the next dispatch is for, if nothing is prefilled in it."""
        if self._prefilling or any(one.group.handle.stream for one in self._decoding.values()):
            return 1
        steps = max(1, self._most_steps // 4) if self._waiting else self._most_steps
        return min(steps, max((sequence.remaining for sequence in self._decoding.values()), default=1))

    def _grow(self, steps: int) -> tuple[list[CandidateSequence], bool]:
        """The sequences that go on, each with pages for its next tokens, at most `steps`; and whether pages
        were short.

        Older ones come first. Where no pages are left, what is on its way is read, which may end somebody;
        then the youngest is preempted. The oldest waits for prompts that are being prefilled, if need be:
        they come to an end without further pages.
        """
        going: list[CandidateSequence] = []
        short = False
        for sequence in sorted(self._decoding.values(), key=lambda sequence: sequence.age):
            while sequence.slot in self._decoding and sequence.remaining:
                if self._manager.grow(sequence, min(steps, sequence.remaining)):
                    going.append(sequence)
                    break
                short = True
                if self._unread:
                    self._read(self._unread.popleft())
                elif len(self._decoding) > 1:
                    self._preempt(self._victim(sequence))
                else:
                    break
        return [sequence for sequence in going if not sequence.ended], short

    def _victim(self, sequence: CandidateSequence) -> CandidateSequence:
        """Who is preempted for a sequence: the youngest that has used up what it was promised, or of all.

        It is no older one, and never the oldest of all; so it may be the sequence itself.
        """
        by_age = sorted(self._decoding.values(), key=lambda other: other.age)
        others = by_age[max(1, by_age.index(sequence)) :]
        return next((other for other in reversed(others) if not other.reserved), others[-1])

    def _preempt(self, sequence: CandidateSequence) -> None:
        """Takes a sequence, of which everything was read, from the device; it waits to be prefilled again."""
        before = sequence.group
        self._vacate(sequence)
        before.sequences.remove(sequence)
        groups = self._open[before.handle].groups
        if all(other.ended for other in before.sequences):
            self._release(before)
            groups.remove(before)
        prompt = sequence.request.context + tuple(sequence.tokens)
        group = SequenceGroup(before.handle, before.arrival, prompt, len(prompt) - 1, [sequence])
        sequence.group = group
        groups.append(group)
        insort(self._waiting, group, key=lambda group: group.age)

    # ---- Dispatch ----

    def _dispatch(self, sequences: list[CandidateSequence], steps: int) -> Dispatched | None:
        B = next(size for size in self._decode_sizes if size >= len(sequences))
        if chunks := self._next_chunks():
            C = next(size for size in self._prefill_sizes if size >= len(chunks))
            return self._mix(sequences, chunks, B, C)
        if sequences:
            return self._decode(sequences, 1 if len(sequences) == 1 else B, steps)
        return None

    def _next_chunks(self) -> list[Chunk]:
        """What has to be prefilled next, in the order of arrival."""
        chunks: list[Chunk] = []
        for group in self._prefilling:
            while len(chunks) < self._prefill_sizes[-1]:
                start, stop = self._manager.next_chunk(group, self._chunk_size)
                if start == stop:
                    break
                chunks.append(Chunk(group, start, stop))
        return chunks

    def _mix(self, sequences: list[CandidateSequence], chunks: list[Chunk], B: int, C: int) -> Dispatched:
        """One token of each sequence, and prefill chunks."""
        # 1. The arrays of both.
        paths = [sequence.group.path for sequence in sequences] + [chunk.group.path for chunk in chunks]
        common = CommonPath.best(paths)
        decode = decode_batch(sequences, common, self._manager, B, idle_slot=self._max_sequences)
        prefill = prefill_batch(chunks, common, self._manager, C, self._chunk_size)

        # 2. What is asked of them: the next token of each sequence, the tokens that are scored, and the first
        #    tokens of the candidates whose prompt is complete with this step.
        entries = Entries(self._max_sequences + C * self._chunk_size)
        for b, sequence in enumerate(sequences):
            entries.sample(b, sequence)
        complete: list[SequenceGroup] = []
        copies: list[tuple[int, int]] = []
        for c, chunk in enumerate(chunks):
            group = chunk.group
            place = B + c * self._chunk_size - chunk.start  # of the group's first token, as it were
            last = chunk.stop == len(group.prompt)
            # The last token of a resumed sequence is computed for the first time: it counts as decoded.
            again = chunk.stop - (last and group.resumed)
            self.tokens += chunk.stop - chunk.start
            group.prefilled += max(0, min(again, group.first_read + 1) - chunk.start)
            group.handle.usage.attended += attended_keys(chunk.start, again)
            if isinstance(group.handle.request, ScoreRequest):
                for i in range(max(group.first_read, chunk.start), chunk.stop):
                    entries.score(place + i, group, i - group.first_read)
            elif last:
                copies += self._manager.fork(group)
                for sequence in group.sequences:
                    entries.sample(place + group.first_read, sequence, fresh=True)
            if last:
                complete.append(group)

        # 3. The step itself, and the copies of prompts' last pages.
        self._state, outputs = mixed_step(
            self._graph,
            self._weights,
            self._state,
            self._masks.on_device(),
            common.shared_prefix(self._manager.table_length),
            decode,
            prefill,
            entries.inputs(),
            Z=self._alternatives,
            mesh=self._mesh,
        )
        if copies:
            self._copy(copies)

        # 4. What the device has now been asked for.
        for sequence in sequences:
            sequence.position += 1
            sequence.remaining -= 1
        for group in complete:
            self._prefilling.remove(group)
            group.handle.usage.prefilled += group.prefilled
            if not group.resumed:
                group.handle.usage.cached += group.first_read + 1 - group.prefilled
            for sequence in group.sequences:
                sequence.remaining -= 1
                self._decoding[sequence.slot] = sequence
            if not group.sequences:
                self._release(group)
        return Dispatched(outputs, entries.recipients)

    def _decode(self, sequences: list[CandidateSequence], B: int, steps: int) -> Dispatched:
        """Some tokens of each sequence."""
        common = CommonPath.best([sequence.group.path for sequence in sequences])
        entries = Entries(B)
        for b, sequence in enumerate(sequences):
            entries.sample(b, sequence)
        self._state, outputs = decode_steps(
            self._graph,
            self._weights,
            self._state,
            self._masks.on_device(),
            common.shared_prefix(self._manager.table_length),
            decode_batch(sequences, common, self._manager, B, idle_slot=self._max_sequences),
            entries.inputs(),
            np.int32(steps),
            most=self._most_steps,
            Z=self._alternatives,
            mesh=self._mesh,
        )
        for sequence in sequences:
            taken = min(steps, sequence.remaining)
            sequence.position += taken
            sequence.remaining -= taken
        return Dispatched(outputs, entries.recipients, steps)

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        source_P = np.full(self._max_sequences, NULL_PAGE, np.int32)
        target_P = np.full(self._max_sequences, NULL_PAGE, np.int32)
        for place, (source, target) in enumerate(copies):
            source_P[place] = source
            target_P[place] = target
        self._state = copy_pages(self._state, source_P, target_P, self._first_page_L)

    # ---- Reading ----

    def _read(self, step: Dispatched) -> None:
        """Waits for the outputs of a step and hands them to whom they belong."""
        outputs = jax.device_get(step.outputs)
        if step.steps is None:
            outputs = jax.tree.map(lambda x: x[None], outputs)
        for place, recipient in enumerate(step.recipients):
            if isinstance(recipient, CandidateSequence):
                self._take(recipient, jax.tree.map(lambda x, p=place: x[: step.steps or 1, p], outputs))
            elif not recipient.group.handle.done:
                self._take_score(recipient, outputs, place)

    def _take(self, sequence: CandidateSequence, outputs: HeadOutputs) -> None:
        """New tokens of a sequence, one after the other, up to that which ends it."""
        if sequence.ended:
            return
        request = sequence.request
        most = self._manager.max_new_tokens(request)
        over = False
        tokens = outputs.token_A.tolist()
        logprobs = outputs.logprob_A.tolist()
        for place, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            self.tokens += 1
            sequence.tokens.append(token)
            sequence.logprobs.append(logprob)
            if request.alternatives:
                sequence.likeliest.append(_likeliest(outputs, request, place))
            over = self._masks.ends(sequence.group.mask, token) or len(sequence.tokens) == most
            if over:
                break
        if not over and not self._detokenizer.stopped(sequence.tokens, len(tokens), request):
            return
        handle = sequence.group.handle
        generation = self._detokenizer.generation(
            sequence.tokens, sequence.logprobs, sequence.likeliest, request
        )
        handle.result[sequence.candidate] = generation
        handle.usage.generated += len(generation.tokens)
        first = len(request.context)
        handle.usage.attended += attended_keys(first, first + len(generation.tokens) - 1)
        sequence.ended = True
        self._vacate(sequence)
        if all(other.ended for other in sequence.group.sequences):
            self._release(sequence.group)
        self._got(handle)

    def _take_score(self, scored: ScoredToken, outputs: HeadOutputs, place: int) -> None:
        """A log-probability of a score request."""
        handle = scored.group.handle
        handle.result[scored.index] = outputs.logprob_A[0, place]
        if handle.request.alternatives:
            handle.likeliest[scored.index] = _likeliest(outputs, handle.request, 0, place)
        handle.usage.scored += 1
        self._got(handle)

    def _got(self, handle: Handle) -> None:
        """One result more."""
        self._open[handle].missing -= 1
        if not self._open[handle].missing:
            self._close(handle)

    # ---- Leaving ----

    def _vacate(self, sequence: CandidateSequence) -> None:
        """Frees the slot and the pages of a sequence."""
        self._decoding.pop(sequence.slot, None)
        self._free_slots.append(sequence.slot)
        sequence.slot = NO_SLOT
        self._manager.release_sequence(sequence)

    def _release(self, group: SequenceGroup) -> None:
        """Frees what the sequences of a group had in common."""
        self._manager.release_group(group)
        self._masks.give_back(group.mask)

    def _close(self, handle: Handle) -> None:
        handle.done = True
        self._open.pop(handle)
        self._finished.append(handle)


def _likeliest(outputs: HeadOutputs, request: Request, *place: int) -> Likeliest:
    """The likeliest tokens at a place that are possible at all, as many as the request asks for."""
    tokens = outputs.likeliest_AZ[place][: request.alternatives]
    logprobs = outputs.likeliest_logprob_AZ[place][: request.alternatives]
    pairs = zip(tokens.tolist(), logprobs.tolist(), strict=True)
    return tuple((token, logprob) for token, logprob in pairs if logprob > -math.inf)
