"""The pages of the KV cache, and the radix tree over them: the prefix cache.

A page has room for the keys and values of `page_size` tokens. Full pages stand in a radix tree over token
ids, one node a page, so that sequences which begin alike use the same pages. A node stands in the tree before
it is computed: sequences are served in order, and whoever comes to a token first computes it for all. Pages
that nobody uses stay until their room is needed; the least recently used go first.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

PAGE_SIZE = 16  # tokens, unless an engine is told otherwise
NULL_PAGE = 0  # the page that belongs to nobody: what is to be forgotten is written there


@dataclass(eq=False)
class Node:
    """A full page of the tree, with `tokens` after those of its parents.

    computed: how many of them the device has been given. users: sequences and groups that need the page;
    whoever uses a node uses its parents too. last_used: when, by the clock of the cache.
    """

    page: int
    tokens: tuple[int, ...]
    parent: "Node | None"
    children: dict[tuple[int, ...], "Node"] = field(default_factory=dict)
    computed: int = 0
    users: int = 0
    last_used: int = 0


class PrefixCache:
    """`pages` pages of `page_size` tokens, without the NULL_PAGE.

    Each is free, or owned by one sequence, or a node of the tree. Whoever means to take pages reserves them
    first: then `take` cannot fail.
    """

    def __init__(self, pages: int, page_size: int):
        self.pages = pages
        self.page_size = page_size
        self._root = Node(NULL_PAGE, (), None)
        self._free = list(range(pages, NULL_PAGE, -1))
        self._reserved = 0
        self._idle = 0  # nodes without users
        self._clock = count()
        self._leaves: list[tuple[int, int, Node]] = []  # to be evicted in this order; some have changed since

    @property
    def available(self) -> int:
        """Pages that may be reserved: free ones and those of nodes without users."""
        return len(self._free) + self._idle - self._reserved

    @property
    def in_use(self) -> int:
        """Pages that are owned or whose nodes have users."""
        return self.pages - len(self._free) - self._idle

    # ---- Owned pages ----

    def reserve(self, pages: int) -> None:
        """Keeps so many available pages for `take`."""
        assert pages <= self.available
        self._reserved += pages

    def unreserve(self, pages: int) -> None:
        """Gives up reserved pages that nobody took."""
        self._reserved -= pages

    def take(self) -> int:
        """A reserved page, owned from now on."""
        self._reserved -= 1
        if not self._free:
            self._evict()
        return self._free.pop()

    def give_back(self, page: int) -> None:
        """An owned page that is needed no longer."""
        self._free.append(page)

    # ---- The radix tree ----

    def find(self, tokens: Sequence[int]) -> list[Node]:
        """The nodes of the longest prefix of `tokens` in the tree, from the root down."""
        path: list[Node] = []
        node = self._root
        for start in range(0, len(tokens) - self.page_size + 1, self.page_size):
            node = node.children.get(tuple(tokens[start : start + self.page_size]))
            if node is None:
                break
            path.append(node)
        return path

    def use(self, node: Node) -> None:
        """One user more."""
        self._idle -= not node.users
        node.users += 1

    def leave(self, path: Sequence[Node]) -> None:
        """One user less for each node of a path. What nobody uses and nobody computed is gone."""
        for node in reversed(path):
            node.users -= 1
            if node.users:
                continue
            self._idle += 1
            node.last_used = next(self._clock)
            if node.computed < self.page_size:
                self._remove(node)
            elif not node.children:
                heapq.heappush(self._leaves, (node.last_used, node.page, node))

    def insert(self, parent: Node | None, tokens: tuple[int, ...], page: int, computed: int = 0) -> Node:
        """The owned page becomes a node, with one user; there is none with these tokens."""
        parent = parent or self._root
        assert tokens not in parent.children and len(tokens) == self.page_size
        node = Node(page, tokens, parent, computed=computed, users=1)
        parent.children[tokens] = node
        return node

    def publish(self, parent: Node | None, tokens: tuple[int, ...], page: int) -> Node:
        """The node of an owned page whose tokens are computed, with one user.

        One of the two is free where there is a node already: its own page, if that is still being computed.
        """
        node = (parent or self._root).children.get(tokens)
        if node is None:
            return self.insert(parent, tokens, page, computed=self.page_size)
        self.use(node)
        if node.computed < self.page_size:
            node.page, page = page, node.page
            node.computed = self.page_size
        self.give_back(page)
        return node

    def forget(self) -> None:
        """Frees every page that has no user."""
        while self._idle:
            self._evict()

    def _evict(self) -> None:
        while True:
            last_used, _, node = heapq.heappop(self._leaves)
            if (
                last_used == node.last_used
                and not node.users
                and not node.children
                and node.parent is not None
            ):
                self._remove(node)
                return

    def _remove(self, node: Node) -> None:
        """Takes an idle node without children out of the tree."""
        parent = node.parent
        assert parent is not None and not node.users and not node.children
        del parent.children[node.tokens]
        node.parent = None
        self._idle -= 1
        self._free.append(node.page)
        if parent is not self._root and not parent.users and not parent.children:
            heapq.heappush(self._leaves, (parent.last_used, parent.page, parent))
