"""What the engine has admitted: runs and their branches, and the pages they hold.

A run is a request, or some of its candidates. Its tokens are computed first; the candidates then go on as
branches. All pages that a run may need at worst are reserved when it begins, so it never waits half done.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rationalyst_jax.lm.devices.mesh import TENSOR
from rationalyst_jax.lm.engine.pages import Node, Pages
from rationalyst_jax.lm.engine.requests import GenerateRequest, Handle, Likeliest, Request, ScoreRequest
from rationalyst_jax.lm.model.llama import Llama

CACHE_ON_CPU = 1 << 30  # bytes, where nobody says how many pages
LEAST = 1024  # tokens: a device without room for such a cache has none for the model


@dataclass(eq=False)
class Run:
    """tokens: what is computed before anything is sampled. asked: from where on hidden states are read.

    path: the full pages before that place, in the tree. own: the pages from there on; own_done: how many of
    their tokens were given to the device. reserved: pages that may still be taken. table: all pages, `[P]`.
    kind: its row in the table of words (`text.py`). left: it has given up all that.
    """

    handle: Handle
    tokens: tuple[int, ...]
    asked: int
    path: list[Node]
    reserved: int
    table: np.ndarray
    kind: int = 0
    own: list[int] = field(default_factory=list)
    own_done: int = 0
    computed: int = 0  # tokens of the context, for this run
    begun: int = 0  # nodes of the path that need no look any more: all their tokens were given to the device
    branches: list["Branch"] = field(default_factory=list)
    left: bool = False


@dataclass(eq=False)
class Branch:
    """A candidate, in a slot. own: its pages after those of the run's path; table and reserved as there.

    position: of the next token to be computed. left: how many tokens may still be asked for. tokens, logprobs
    and likeliest: what was read so far.
    """

    run: Run
    candidate: int
    slot: int
    table: np.ndarray
    own: list[int] = field(default_factory=list)
    reserved: int = 0
    position: int = 0
    left: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    likeliest: list[Likeliest] = field(default_factory=list)
    ended: bool = False

    @property
    def request(self) -> GenerateRequest:
        return cast(GenerateRequest, self.run.handle.request)


class Memory:
    """The pages of runs and branches. positions: the most tokens of a sequence; width: the pages of these."""

    def __init__(self, pages: Pages, positions: int):
        self.pages = pages
        self.positions = min(positions, pages.number * pages.size)
        self.width = -(-self.positions // pages.size)

    def needed(self, request: Request, candidates: int) -> int:
        """Pages of a run at worst, with nothing in the cache yet."""
        shared = self._shared(request)
        return shared + self._own(request, candidates, shared)

    def most(self, request: GenerateRequest) -> int:
        """How many tokens a candidate may have."""
        return min(request.max_tokens, self.positions - len(request.context))

    def begin(self, handle: Handle, candidates: int) -> Run | None:
        """The run of a request, with what the tree has of it and the pages it may need; None: not enough."""
        request, size = handle.request, self.pages.size
        shared = self._shared(request)
        path = self.pages.find(request.context[: shared * size])
        own = self._own(request, candidates, shared)
        wanted = shared - len(path) + own
        if wanted + sum(not node.users for node in path) > self.pages.available:
            return None
        for node in path:
            self.pages.use(node)
        self.pages.reserve(wanted)
        for place in range(len(path), shared):
            tokens = request.context[place * size : (place + 1) * size]
            path.append(self.pages.insert(path[-1] if path else None, tokens, self.pages.take()))
        tokens = request.context
        if isinstance(request, ScoreRequest):
            tokens += request.continuation[:-1]
        run = Run(handle, tokens, len(request.context) - 1, path, own, np.zeros(self.width, np.int32))
        while (shared + len(run.own)) * size < len(tokens):
            self.grow(run, shared)
        return run

    def grow(self, owner: Run | Branch, first: int) -> None:
        """One reserved page more, after the `first` pages of the path."""
        page = self.pages.take()
        owner.reserved -= 1
        owner.table[first + len(owner.own)] = page
        owner.own.append(page)

    def advance(self, run: Run, most: int) -> tuple[int, int]:
        """The next tokens of a run to be given to the device, at most so many: from, and up to, which place.

        They count as computed from now on, for all who share them. None are left where the two are equal.
        """
        size, path = self.pages.size, run.path
        while run.begun < len(path) and path[run.begun].computed == size:
            run.begun += 1
        if run.begun < len(path):
            start = run.begun * size + path[run.begun].computed
        else:
            start = len(path) * size + run.own_done
        stop = min(start + most, len(run.tokens))
        for place in range(run.begun, min(-(-stop // size), len(path))):
            path[place].computed = min(size, stop - place * size)
        run.own_done = max(0, stop - len(path) * size)
        return start, stop

    def table(self, run: Run) -> np.ndarray:
        """The pages of a run; those of the path may have changed since it began."""
        run.table[: len(run.path)] = [node.page for node in run.path]
        return run.table

    def fork(self, run: Run) -> list[tuple[int, int]]:
        """Gives the branches of a complete run their pages.

        A last page that is full goes to the tree, for all; else the first branch gets it, the others copies.
        Returns which pages are to be copied where, once the step that fills them is dispatched.
        """
        first, size, copies = len(run.path), self.pages.size, []
        (page,) = run.own
        pages, full = run.reserved + 1, len(run.tokens) == (first + 1) * size
        run.own, run.own_done, run.reserved = [], 0, 0
        if full:
            pages -= 1
            parent = run.path[-1] if run.path else None
            run.path.append(self.pages.publish(parent, run.tokens[first * size :], page))
        each = pages // len(run.branches)
        for branch in run.branches:
            branch.table[: len(run.path)] = [node.page for node in run.path]
            branch.reserved, branch.position = each, len(run.tokens)
            branch.left = self.most(branch.request)
            if full:
                continue
            if branch is run.branches[0]:
                branch.own, branch.reserved = [page], each - 1
                branch.table[first] = page
            else:
                self.grow(branch, first)
                copies.append((page, branch.own[0]))
        self.pages.release(pages - each * len(run.branches))
        return copies

    def end(self, branch: Branch) -> None:
        """What a branch computed goes to the tree, in full pages; the rest is free."""
        self.pages.release(branch.reserved)
        tokens = branch.run.tokens + tuple(branch.tokens)
        self._publish(branch.run.path, tokens, len(tokens) - 1, branch.own)

    def leave(self, run: Run) -> None:
        """The same for a run that has no branch at work."""
        run.left = True
        self.pages.release(run.reserved)
        self._publish(run.path, run.tokens, len(run.path) * self.pages.size + run.own_done, run.own)
        self.pages.leave(run.path)

    def _publish(self, path: list[Node], tokens: Sequence[int], computed: int, own: list[int]) -> None:
        """Puts those of the own pages in the tree all of whose tokens are computed."""
        size, nodes = self.pages.size, list(path)
        for number, page in enumerate(own, start=len(path)):
            if (number + 1) * size <= computed:
                parent = nodes[-1] if nodes else None
                nodes.append(
                    self.pages.publish(parent, tuple(tokens[number * size : (number + 1) * size]), page)
                )
            else:
                self.pages.give_back(page)
        self.pages.leave(nodes[len(path) :])

    def _shared(self, request: Request) -> int:
        """Full pages before the last token of the context, which is computed for whoever asks."""
        return (len(request.context) - 1) // self.pages.size

    def _own(self, request: Request, candidates: int, shared: int) -> int:
        """Pages after those, at worst. The last token of all is never computed."""
        rest = len(request.context) - shared * self.pages.size - 1
        if isinstance(request, ScoreRequest):
            return -(-(rest + len(request.continuation)) // self.pages.size)
        return candidates * -(-(rest + self.most(request)) // self.pages.size)


def fitting_pages(model: Llama, page_size: int, rows: int, share: float, mesh: Mesh | None) -> int:
    """How many pages fit in a share of the free memory of a device, but no more than rows can need."""
    config, dtype = model.config, jnp.dtype(model.embed_VD.dtype)
    device, shards = (jax.devices()[0], 1) if mesh is None else (mesh.devices.flat[0], mesh.shape[TENSOR])
    a_token = 2 * config.num_layers * config.num_kv_heads // shards * config.head_dim * dtype.itemsize
    stats = device.memory_stats()
    free = share * (stats["bytes_limit"] - stats["bytes_in_use"]) if stats else CACHE_ON_CPU
    most = rows * -(-config.max_position_embeddings // page_size)
    fitting = int(free) // (a_token * page_size) - 1
    if fitting * page_size < min(LEAST, config.max_position_embeddings):
        raise ValueError(f"engine: {free / 2**20:,.0f} MiB are left for the cache: less than {LEAST} tokens")
    return min(most, fitting)
