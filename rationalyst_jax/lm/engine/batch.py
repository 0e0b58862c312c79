"""The arrays of a step, as the host fills them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rationalyst_jax.lm.engine.attention import Trunk
from rationalyst_jax.lm.engine.head import Answers, Entries
from rationalyst_jax.lm.engine.pages import Node
from rationalyst_jax.lm.engine.runs import Branch, Memory, Run
from rationalyst_jax.lm.engine.step import Pieces, Singles

_COLUMNS = {  # of Entries, after its count
    **dict.fromkeys(("place_A", "target_A", "slot_A"), np.int32),
    "fresh_A": bool,
    **dict.fromkeys(("kind_A", "left_A"), np.int32),
    "seed_A": np.uint32,
    **dict.fromkeys(("candidate_A", "position_A"), np.int32),
    **dict.fromkeys(("temperature_A", "top_p_A"), np.float32),
    "top_k_A": np.int32,
}


class Asked:
    """The entries of a step as they are collected, at most `size`. whose: a branch, or a run and which of the
    tokens it scores."""

    def __init__(self, size: int):
        self.size = size
        self.whose: list[Branch | tuple[Run, int]] = []
        self._rows: list[tuple] = []
        self._likeliest = False

    def sample(self, place: int, branch: Branch, *, fresh: bool = False) -> None:
        """The next token of a branch, or its first, from the hidden state at `place` of the step."""
        request = branch.request
        noise = request.seed, branch.candidate, branch.position + (not fresh)
        how = request.temperature, request.top_p, request.top_k
        self.whose.append(branch)
        self._likeliest |= request.alternatives > 0
        self._rows.append((place, -1, branch.slot, fresh, branch.run.kind, branch.left, *noise, *how))

    def score(self, place: int, run: Run, index: int, target: int) -> None:
        """The log-probability of a token of a continuation."""
        self.whose.append((run, index))
        self._likeliest |= run.handle.request.alternatives > 0
        self._rows.append((place, target, 0, False, run.kind, 0, 0, 0, 0, 0.0, 1.0, 0))

    def entries(self) -> Entries:
        columns = {name: np.zeros(self.size, dtype) for name, dtype in _COLUMNS.items()}
        columns["top_p_A"][:] = 1  # fillers restrict nothing
        if self._rows:
            for column, values in zip(columns.values(), zip(*self._rows, strict=True), strict=True):
                column[: len(values)] = values
        return Entries(np.int32(len(self._rows)), np.bool_(self._likeliest), **columns)


@dataclass(frozen=True)
class Dispatched:
    """A step on its way: its outputs on the device, and whose they are. steps: None for a mixed one."""

    answers: Answers
    whose: list[Branch | tuple[Run, int]]
    steps: int | None = None


@dataclass(frozen=True)
class Begin:
    """The pages with which most sequences of a step begin: nodes of the tree, from the root down."""

    nodes: Sequence[Node]

    @classmethod
    def common(cls, paths: Sequence[Sequence[Node]]) -> "Begin":
        """Of the beginnings that are common to some of the paths, that which saves most reading of pages.

        Level by level, those go on whose node most of them share.
        """
        best, most, depth = [], 0, 0
        while len(paths) > 1:
            shared = Counter(path[depth] for path in paths if len(path) > depth).most_common(1)
            if not shared:
                break
            node, users = shared[0]
            paths = [path for path in paths if len(path) > depth and path[depth] is node]
            depth += 1
            if (users - 1) * depth > most:
                best, most = paths[0][:depth], (users - 1) * depth
        return cls(best)

    def begins(self, path: Sequence[Node], place: int, size: int) -> bool:
        """Whether a token at that place of a sequence sees all of it."""
        count = len(self.nodes)
        return 0 < count <= len(path) and path[count - 1] is self.nodes[-1] and place >= count * size

    def trunk(self, width: int) -> Trunk:
        page_P = np.zeros(width, np.int32)
        page_P[: len(self.nodes)] = [node.page for node in self.nodes]
        return Trunk(page_P, np.int32(len(self.nodes)))


def singles(
    branches: Sequence[Branch], begin: Begin, memory: Memory, D: int, steps: int, nobody: int
) -> Singles:
    """The next `steps` tokens of branches, which get the pages for them; fillers have the slot `nobody`."""
    slot_D, position_D = np.full(D, nobody, np.int32), np.zeros(D, np.int32)
    page_DP, member_D = np.zeros((D, memory.width), np.int32), np.zeros(D, bool)
    for d, branch in enumerate(branches):
        last, first = branch.position + min(steps, branch.left) - 1, len(branch.run.path)
        while (first + len(branch.own)) * memory.pages.size <= last:
            memory.grow(branch, first)
        slot_D[d], position_D[d], page_DP[d] = branch.slot, branch.position, branch.table
        member_D[d] = begin.begins(branch.run.path, branch.position, memory.pages.size)
    return Singles(slot_D, position_D, page_DP, member_D)


def pieces(parts: Sequence[tuple[Run, int, int]], begin: Begin, memory: Memory, B: int, Q: int) -> Pieces:
    """Tokens of runs, each from one place up to another."""
    token_BQ, position_BQ = np.zeros((B, Q), np.int32), np.full((B, Q), -1, np.int32)
    page_BP, member_B = np.zeros((B, memory.width), np.int32), np.zeros(B, bool)
    for b, (run, start, stop) in enumerate(parts):
        token_BQ[b, : stop - start] = run.tokens[start:stop]
        position_BQ[b, : stop - start] = range(start, stop)
        page_BP[b] = memory.table(run)
        member_B[b] = begin.begins(run.path, start, memory.pages.size)
    return Pieces(token_BQ, position_BQ, page_BP, member_B)
