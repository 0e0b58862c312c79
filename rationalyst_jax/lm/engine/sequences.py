"""Groups of sequences that share a prompt, and the pages they hold while they are at work.

A group is a request, or some of its candidates. Its prompt is prefilled once; the candidates then go on as
sequences of their own. A group that is admitted has the pages of its whole prompt, and is promised some for
what comes after; further pages are taken as a sequence grows. When none are left, the youngest sequence is
preempted: what it computed goes to the prefix cache, and it waits again, as a group of its own whose prompt
is all its tokens so far. The oldest is never preempted, and the cache can hold any sequence alone, so it
comes to its end, and then the next oldest does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rationalyst_jax.lm.devices.mesh import TENSOR
from rationalyst_jax.lm.engine.prefix_cache import Node, PrefixCache
from rationalyst_jax.lm.engine.requests import GenerateRequest, Handle, Likeliest
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama

CACHE_ON_CPU = 1 << 30  # bytes, where nobody says how many pages
LEAST = 1024  # tokens: a device without room for such a cache has none for the model
NO_SLOT = -1
PROMISED = 64  # tokens that an admitted sequence may write before it has to grow


@dataclass(eq=False)
class CandidateSequence:
    """A candidate of a request. tokens, logprobs and likeliest: what was read so far.

    The rest is said of one at work, in a slot of the device. own_pages: its pages after the group's path.
    page_table: all of them, `[P]`. reserved: pages it was promised and has not taken. position: of the next
    token to be computed. remaining: how many tokens the device may still be asked for.
    """

    group: "SequenceGroup"
    candidate: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    likeliest: list[Likeliest] = field(default_factory=list)
    ended: bool = False

    slot: int = NO_SLOT
    own_pages: list[int] = field(default_factory=list)
    page_table: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    reserved: int = 0
    position: int = 0
    remaining: int = 0

    @property
    def request(self) -> GenerateRequest:
        return cast(GenerateRequest, self.group.handle.request)

    @property
    def age(self) -> tuple[int, int]:
        """The oldest comes first: by the arrival of its request, then by its number there."""
        return self.group.arrival, self.candidate


@dataclass(eq=False)
class SequenceGroup:
    """A prompt that is prefilled once, and the sequences that go on from it; none, where it is only scored.

    prompt: the tokens that are computed before anything is sampled. first_read: the first place of it whose
    hidden state is read. arrival: the number of the request. passed: how often younger ones were admitted
    before it.

    The rest is said of one at work. path: the full pages before first_read, nodes of the radix tree.
    own_pages: the pages from there on; own_computed: how many of their tokens were given to the device.
    page_table: all of them, `[P]`. reserved: pages it was promised and has not taken. mask: its row of the
    token masks (`text.py`).
    """

    handle: Handle
    arrival: int
    prompt: tuple[int, ...]
    first_read: int
    sequences: list[CandidateSequence] = field(default_factory=list)
    passed: int = 0

    at_work: bool = False
    path: list[Node] = field(default_factory=list)
    own_pages: list[int] = field(default_factory=list)
    own_computed: int = 0
    path_computed: int = 0  # nodes of the path that need no look any more: the device was given all of them
    page_table: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    reserved: int = 0
    mask: int = 0
    prefilled: int = 0  # tokens of the prompt that were computed for this group

    @property
    def resumed(self) -> bool:
        """Whether its sequence was preempted: then the prompt ends with a token that it sampled before."""
        return bool(self.sequences) and bool(self.sequences[0].tokens)

    @property
    def age(self) -> tuple[int, int]:
        """That of its oldest sequence."""
        return self.sequences[0].age if self.sequences else (self.arrival, 0)


class CacheManager:
    """The pages of groups and sequences.

    max_positions: the most tokens of a sequence. table_length: the pages of these.
    """

    def __init__(self, cache: PrefixCache, max_positions: int):
        self.cache = cache
        self.max_positions = min(max_positions, cache.pages * cache.page_size)
        self.table_length = -(-self.max_positions // cache.page_size)

    def max_new_tokens(self, request: GenerateRequest) -> int:
        """How many tokens a candidate may have."""
        return min(request.max_tokens, self.max_positions - len(request.context))

    def most_candidates(self, request: GenerateRequest) -> int:
        """How many candidates of a request can be admitted at once, at least 1."""
        shared = (len(request.context) - 1) // self.cache.page_size
        return max(1, (self.cache.pages - shared) // self._promised_pages(request, len(request.context)))

    # ---- A prompt ----

    def has_pages(self, group: SequenceGroup) -> bool:
        """Whether there are enough for `admit`."""
        own = self._own_pages(group)
        if own > self.cache.available:  # whatever the tree has of it
            return False
        shared, path = self._shared_path(group)
        return shared - len(path) + own + sum(not node.users for node in path) <= self.cache.available

    def admit(self, group: SequenceGroup) -> None:
        """Gives a group what the tree has of its prompt, pages for the rest, and a promise of some."""
        page_size = self.cache.page_size
        own = self._own_pages(group)
        shared, path = self._shared_path(group)
        for node in path:
            self.cache.use(node)
        self.cache.reserve(shared - len(path) + own)
        for place in range(len(path), shared):
            tokens = group.prompt[place * page_size : (place + 1) * page_size]
            path.append(self.cache.insert(path[-1] if path else None, tokens, self.cache.take()))
        group.at_work = True
        group.path = path
        group.reserved = own
        group.page_table = np.zeros(self.table_length, np.int32)
        while (shared + len(group.own_pages)) * page_size < len(group.prompt):
            self._take_page(group, shared)

    def next_chunk(self, group: SequenceGroup, size: int) -> tuple[int, int]:
        """The next tokens of a prompt for the device, at most so many: from, and up to, which place.

        They count as computed from now on, for all who share them. None are left where the two are equal.
        """
        page_size = self.cache.page_size
        path = group.path
        while group.path_computed < len(path) and path[group.path_computed].computed == page_size:
            group.path_computed += 1
        if group.path_computed < len(path):
            start = group.path_computed * page_size + path[group.path_computed].computed
        else:
            start = len(path) * page_size + group.own_computed
        stop = min(start + size, len(group.prompt))
        for place in range(group.path_computed, min(-(-stop // page_size), len(path))):
            path[place].computed = min(page_size, stop - place * page_size)
        group.own_computed = max(0, stop - len(path) * page_size)
        return start, stop

    def page_table(self, group: SequenceGroup) -> np.ndarray:
        """The pages of a group; those of the path may have changed since it was admitted."""
        group.page_table[: len(group.path)] = [node.page for node in group.path]
        return group.page_table

    # ---- Its candidates ----

    def fork(self, group: SequenceGroup) -> list[tuple[int, int]]:
        """Gives the sequences of a group, whose whole prompt is dispatched, their pages.

        A last page that is full goes to the tree, for all; else the first sequence gets it, the others
        copies. Returns which pages are to be copied where, once the step that fills them is dispatched.
        """
        first = len(group.path)
        page_size = self.cache.page_size
        copies: list[tuple[int, int]] = []
        (page,) = group.own_pages
        pages = group.reserved + 1
        full = len(group.prompt) == (first + 1) * page_size
        group.own_pages = []
        group.own_computed = 0
        group.reserved = 0
        if full:
            pages -= 1
            parent = group.path[-1] if group.path else None
            group.path.append(self.cache.publish(parent, group.prompt[first * page_size :], page))
        each = pages // len(group.sequences)
        for sequence in group.sequences:
            sequence.page_table = np.zeros(self.table_length, np.int32)
            sequence.page_table[: len(group.path)] = [node.page for node in group.path]
            sequence.reserved = each
            sequence.position = len(group.prompt)
            sequence.remaining = self.max_new_tokens(sequence.request) - len(sequence.tokens)
            if full:
                continue
            if sequence is group.sequences[0]:
                sequence.own_pages = [page]
                sequence.reserved -= 1
                sequence.page_table[first] = page
            else:
                self._take_page(sequence, first)
                copies.append((page, sequence.own_pages[0]))
        self.cache.unreserve(pages - each * len(group.sequences))
        return copies

    def grow(self, sequence: CandidateSequence, tokens: int) -> bool:
        """Gives a sequence the pages for its next tokens. Whether there are enough; if not, it gets none."""
        first = len(sequence.group.path)
        pages = -(-(sequence.position + tokens) // self.cache.page_size)
        wanted = max(0, pages - first - len(sequence.own_pages))
        lacking = max(0, wanted - sequence.reserved)
        if lacking > self.cache.available:
            return False
        self.cache.reserve(lacking)
        sequence.reserved += lacking
        for _ in range(wanted):
            self._take_page(sequence, first)
        return True

    # ---- Leaving ----

    def release_sequence(self, sequence: CandidateSequence) -> None:
        """What a sequence computed goes to the tree, in full pages; the rest is free."""
        self.cache.unreserve(sequence.reserved)
        tokens = sequence.request.context + tuple(sequence.tokens)
        self._publish(sequence.group.path, tokens, len(tokens) - 1, sequence.own_pages)
        sequence.own_pages = []
        sequence.reserved = 0

    def release_group(self, group: SequenceGroup) -> None:
        """The same for a group that has no sequence at work."""
        self.cache.unreserve(group.reserved)
        computed = len(group.path) * self.cache.page_size + group.own_computed
        self._publish(group.path, group.prompt, computed, group.own_pages)
        self.cache.leave(group.path)
        group.at_work = False

    def _publish(self, path: list[Node], tokens: Sequence[int], computed: int, own_pages: list[int]) -> None:
        """Puts those of the own pages in the tree all of whose tokens are computed."""
        page_size = self.cache.page_size
        nodes = list(path)
        for number, page in enumerate(own_pages, start=len(path)):
            start = number * page_size
            if start + page_size <= computed:
                parent = nodes[-1] if nodes else None
                nodes.append(self.cache.publish(parent, tuple(tokens[start : start + page_size]), page))
            else:
                self.cache.give_back(page)
        self.cache.leave(nodes[len(path) :])

    def _take_page(self, owner: SequenceGroup | CandidateSequence, first: int) -> None:
        """One reserved page more, after the `first` pages of the path."""
        page = self.cache.take()
        owner.reserved -= 1
        owner.page_table[first + len(owner.own_pages)] = page
        owner.own_pages.append(page)

    def _shared_path(self, group: SequenceGroup) -> tuple[int, list[Node]]:
        """How many pages a group can share, and those of them that the tree has.

        The first place whose hidden state is read is computed for whoever asks.
        """
        shared = group.first_read // self.cache.page_size
        return shared, self.cache.find(group.prompt[: shared * self.cache.page_size])

    def _own_pages(self, group: SequenceGroup) -> int:
        """Pages after the shared ones with which a group begins."""
        if group.sequences:
            request = group.sequences[0].request
            return len(group.sequences) * self._promised_pages(request, len(group.prompt))
        page_size = self.cache.page_size
        return -(-len(group.prompt) // page_size) - group.first_read // page_size

    def _promised_pages(self, request: GenerateRequest, prompt: int) -> int:
        """Those of a candidate whose prompt has so many tokens. The last token of all is never computed."""
        page_size = self.cache.page_size
        longest = len(request.context) + self.max_new_tokens(request) - 1
        return -(-min(longest, prompt + PROMISED) // page_size) - (prompt - 1) // page_size


def most_pages(config: LlamaConfig, page_size: int, max_sequences: int) -> int:
    """How many pages sequences can need at most, where each has as many tokens as there are positions."""
    return max_sequences * -(-config.max_position_embeddings // page_size)


def fitting_pages(model: Llama, page_size: int, max_sequences: int, share: float, mesh: Mesh | None) -> int:
    """How many pages fit in a share of the free memory of a device, but no more than sequences can need."""
    config = model.config
    dtype = jnp.dtype(model.embed_VD.dtype)
    device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
    shards = 1 if mesh is None else mesh.shape[TENSOR]
    bytes_a_token = 2 * config.num_layers * config.num_kv_heads // shards * config.head_dim * dtype.itemsize
    stats = device.memory_stats()
    free = share * (stats["bytes_limit"] - stats["bytes_in_use"]) if stats else CACHE_ON_CPU
    fitting = int(free) // (bytes_a_token * page_size) - 1
    if fitting * page_size < min(LEAST, config.max_position_embeddings):
        raise ValueError(f"engine: {free / 2**20:,.0f} MiB are left for the cache: less than {LEAST} tokens")
    return min(most_pages(config, page_size, max_sequences), fitting)
