"""The arrays of a step, as the host fills them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rationalyst_jax.lm.engine.attention import SharedPrefix
from rationalyst_jax.lm.engine.head import HeadInputs, HeadOutputs
from rationalyst_jax.lm.engine.prefix_cache import Node
from rationalyst_jax.lm.engine.sequences import CacheManager, CandidateSequence, SequenceGroup
from rationalyst_jax.lm.engine.step import DecodeBatch, PrefillBatch


@dataclass(frozen=True)
class Chunk:
    """A prefill chunk: tokens of a group's prompt, from one place up to another."""

    group: SequenceGroup
    start: int
    stop: int


@dataclass(frozen=True)
class ScoredToken:
    """Who gets a log-probability: token `index` of the continuation of a group's score request."""

    group: SequenceGroup
    index: int


class Entries:
    """What a step asks of its hidden states, as it is collected; at most `size` entries.

    recipients: for each entry, who gets what it gives.
    """

    def __init__(self, size: int):
        self.recipients: list[CandidateSequence | ScoredToken] = []
        self._inputs = HeadInputs.fillers(size)
        self._wants_likeliest = False

    def sample(self, place: int, sequence: CandidateSequence, *, fresh: bool = False) -> None:
        """The next token of a sequence, or its first, from the hidden state at `place` of the step."""
        request = sequence.request
        a = len(self.recipients)
        inputs = self._inputs
        inputs.place_A[a] = place
        inputs.target_A[a] = -1
        inputs.slot_A[a] = sequence.slot
        inputs.fresh_A[a] = fresh
        inputs.mask_A[a] = sequence.group.mask
        inputs.remaining_A[a] = sequence.remaining
        inputs.seed_A[a] = request.seed
        inputs.candidate_A[a] = sequence.candidate
        inputs.position_A[a] = sequence.position + (not fresh)
        inputs.temperature_A[a] = request.temperature
        inputs.top_p_A[a] = request.top_p
        inputs.top_k_A[a] = request.top_k
        self.recipients.append(sequence)
        self._wants_likeliest |= request.alternatives > 0

    def score(self, place: int, group: SequenceGroup, index: int) -> None:
        """The log-probability of token `index` of a continuation."""
        request = group.handle.request
        a = len(self.recipients)
        inputs = self._inputs
        inputs.place_A[a] = place
        inputs.target_A[a] = request.continuation[index]
        inputs.mask_A[a] = group.mask
        self.recipients.append(ScoredToken(group, index))
        self._wants_likeliest |= request.alternatives > 0

    def inputs(self) -> HeadInputs:
        count = np.int32(len(self.recipients))
        return replace(self._inputs, count=count, wants_likeliest=np.bool_(self._wants_likeliest))


@dataclass(frozen=True)
class Dispatched:
    """A step on its way: its outputs on the device, and who gets them. steps: None for a mixed one."""

    outputs: HeadOutputs
    recipients: list[CandidateSequence | ScoredToken]
    steps: int | None = None


@dataclass(frozen=True)
class CommonPath:
    """The pages with which most sequences of a step begin: nodes of the radix tree, from the root down."""

    nodes: Sequence[Node]

    @classmethod
    def best(cls, paths: Sequence[Sequence[Node]]) -> "CommonPath":
        """Of the beginnings that are common to some of the paths, that which saves most reading of pages.

        Level by level, those go on whose node most of them share.
        """
        best: Sequence[Node] = []
        most_saved = 0
        depth = 0
        while len(paths) > 1:
            shared = Counter(path[depth] for path in paths if len(path) > depth).most_common(1)
            if not shared:
                break
            [(node, users)] = shared
            paths = [path for path in paths if len(path) > depth and path[depth] is node]
            depth += 1
            saved = (users - 1) * depth
            if saved > most_saved:
                best = paths[0][:depth]
                most_saved = saved
        return cls(best)

    def starts(self, path: Sequence[Node], place: int, page_size: int) -> bool:
        """Whether a token at that place of a sequence sees all of it."""
        count = len(self.nodes)
        return 0 < count <= len(path) and path[count - 1] is self.nodes[-1] and place >= count * page_size

    def shared_prefix(self, table_length: int) -> SharedPrefix:
        """As arrays."""
        page_P = np.zeros(table_length, np.int32)
        page_P[: len(self.nodes)] = [node.page for node in self.nodes]
        return SharedPrefix(page_P, np.int32(len(self.nodes)))


def decode_batch(
    sequences: Sequence[CandidateSequence], common: CommonPath, manager: CacheManager, B: int, idle_slot: int
) -> DecodeBatch:
    """The next tokens of sequences, filled up to B with sequences in the idle slot."""
    slot_B = np.full(B, idle_slot, np.int32)
    position_B = np.zeros(B, np.int32)
    page_BP = np.zeros((B, manager.table_length), np.int32)
    in_prefix_B = np.zeros(B, bool)
    page_size = manager.cache.page_size
    for b, sequence in enumerate(sequences):
        slot_B[b] = sequence.slot
        position_B[b] = sequence.position
        page_BP[b] = sequence.page_table
        in_prefix_B[b] = common.starts(sequence.group.path, sequence.position, page_size)
    return DecodeBatch(slot_B, position_B, page_BP, in_prefix_B)


def prefill_batch(
    chunks: Sequence[Chunk], common: CommonPath, manager: CacheManager, C: int, Q: int
) -> PrefillBatch:
    """Prefill chunks of at most Q tokens, filled up to C with chunks of none."""
    token_CQ = np.zeros((C, Q), np.int32)
    position_CQ = np.full((C, Q), -1, np.int32)
    page_CP = np.zeros((C, manager.table_length), np.int32)
    in_prefix_C = np.zeros(C, bool)
    page_size = manager.cache.page_size
    for c, chunk in enumerate(chunks):
        count = chunk.stop - chunk.start
        token_CQ[c, :count] = chunk.group.prompt[chunk.start : chunk.stop]
        position_CQ[c, :count] = range(chunk.start, chunk.stop)
        page_CP[c] = manager.page_table(chunk.group)
        in_prefix_C[c] = common.starts(chunk.group.path, chunk.start, page_size)
    return PrefillBatch(token_CQ, position_CQ, page_CP, in_prefix_C)
