"""What mining would take, before a model is asked: tokens and operations of both methods.

Documents are annotated as `mine` annotates them, with its places, prompts and settings, by an engine that
shares prefixes and counts but computes nothing. What is written is then scored as the filter would, in its
token trees. What only a model can tell is assumed (`plan/config.py`).
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import chain, count, islice, pairwise
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.lm.engine.prefix_cache import PAGE_SIZE, PrefixCache
from rationalyst_jax.lm.engine.requests import Generation, Handle, Request, ScoreRequest, request_flops
from rationalyst_jax.lm.engine.sequences import CacheManager, SequenceGroup, most_pages
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.flops import attended_keys, forward_flops
from rationalyst_jax.lm.trees.likelihood import Work, work_of
from rationalyst_jax.mine.annotate import annotate_block
from rationalyst_jax.mine.config import AnnotateConfig, FilterConfig
from rationalyst_jax.mine.documents import Annotated, Document, Insertion
from rationalyst_jax.mine.likelihood_filter import fitting_groups
from rationalyst_jax.mine.places import PlaceKind, find_places
from rationalyst_jax.mine.triples import Triple, triple_at
from rationalyst_jax.plan.config import MiningAssumptions
from rationalyst_jax.prompts.prompt import Field, Prompt, PromptSet, check_prompts
from rationalyst_jax.roles.role import Role, Sampling
from rationalyst_jax.roles.usage import Usage

Method = Literal["copy", "insert"]


@dataclass(frozen=True)
class MiningSettings:
    """The settings of `mine` and `filter`, by the names that they have on the command line."""

    annotate: AnnotateConfig
    filter: FilterConfig
    engine: EngineConfig


@dataclass(frozen=True)
class MiningCost:
    """What mining takes with one method.

    too_long: documents that are not annotated. rationales: as many as are written, and too_long_to_score of
    them do not fit in a row of the filter. usage: of annotating. nodes: tokens that the filter computes.
    filter_flops: its operations (`lm/model/flops.py`).
    """

    too_long: int
    rationales: int
    too_long_to_score: int
    usage: Usage
    nodes: int
    filter_flops: int

    @property
    def flops(self) -> int:
        """Operations of annotating and filtering."""
        return self.usage.flops + self.filter_flops

    def scaled(self, factor: float) -> "MiningCost":
        """What it takes of so many times the documents."""
        usage = Usage(*(round(factor * number) for number in astuple(self.usage)))
        numbers = (self.too_long, self.rationales, self.too_long_to_score, self.nodes, self.filter_flops)
        too_long, rationales, too_long_to_score, nodes, flops = (round(factor * n) for n in numbers)
        return MiningCost(too_long, rationales, too_long_to_score, usage, nodes, flops)

    def hours(self, flops_a_second: float) -> float:
        return self.flops / flops_a_second / 3600


def mining_cost(
    method: Method,
    documents: Sequence[Document],
    model: LlamaConfig,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    settings: MiningSettings,
    assumed: MiningAssumptions,
) -> MiningCost:
    """What annotating the documents with a method, and filtering what is written, takes of a model.

    Raises ValueError for prompts that are missing or that the tokenizer cannot render, and for rationales
    longer than annotate.max_rationale_tokens.
    """
    config = settings.annotate.by(method)
    check_prompts(tokenizer, prompts, [*config.prompts, "follow", "follow_guided"])
    if assumed.rationale_tokens > config.max_rationale_tokens:
        raise ValueError(
            f"assume: rationale_tokens is {assumed.rationale_tokens:g}, but annotate.max_rationale_tokens "
            f"{config.max_rationale_tokens}"
        )
    copied = _copied_places(documents, settings.annotate.places, assumed.rationales_per_place)
    lengths = _Lengths(tokenizer, assumed.rationale_tokens, copied)
    role = _ExpectingRole(CountingEngine(model, settings.engine), tokenizer, expected=lengths)
    annotated, usage = _annotate(documents, role, prompts, config)

    rationales = _stretches(documents, tokenizer, assumed.rationale_tokens)
    triples = []
    for one in annotated:
        if isinstance(one, Insertion):
            places = [(place.start, place.end) for place in one.places for _ in range(config.candidates)]
        else:
            starts = copied[one.document.text] if one.finish != "too_long" else ()
            places = list(pairwise([*starts, len(one.document.text)]))
        triples.append([triple_at(one.document, i, *at, next(rationales)) for i, at in enumerate(places)])
    unscored, work = filter_work(triples, model, tokenizer, prompts, settings.filter)
    return MiningCost(
        too_long=sum(one.finish == "too_long" for one in annotated),
        rationales=sum(map(len, triples)),
        too_long_to_score=unscored,
        usage=usage,
        nodes=work.nodes,
        filter_flops=forward_flops(model, work.nodes, work.attended, work.targets),
    )


# ---- Annotating ----


class CountingEngine:
    """An engine (`lm/engine`) that computes nothing: it shares prefixes as that does, and counts the same.

    What is asked at once is admitted at once, as far as there are pages. A candidate has as many tokens as it
    may have. Log-probabilities are drawn by lot.
    """

    repeatable = True
    tokens = 0

    def __init__(self, model: LlamaConfig, config: EngineConfig):
        self._model = model
        pages = config.pages or most_pages(model, PAGE_SIZE, config.max_sequences)
        self._cache = PrefixCache(pages, PAGE_SIZE)
        self._manager = CacheManager(self._cache, model.max_position_embeddings)
        self._arrivals = count()
        self._waiting: deque[SequenceGroup] = deque()
        self._lots = np.random.default_rng(0)

    @property
    def positions(self) -> int:
        return self._manager.max_positions

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def submit(self, request: Request) -> Handle:
        handle = Handle(request)
        scored = request.continuation[:-1] if isinstance(request, ScoreRequest) else ()
        first_read = len(request.context) - 1
        group = SequenceGroup(handle, next(self._arrivals), request.context + scored, first_read)
        self._waiting.append(group)
        return handle

    def step(self) -> list[Handle]:
        """Counts what all admitted requests take, the oldest first."""
        admitted: list[SequenceGroup] = []
        while self._waiting and self._manager.has_pages(self._waiting[0]):
            admitted.append(self._waiting.popleft())
            self._manager.admit(admitted[-1])
        for group in admitted:
            self._count(group)
        for group in admitted:
            self._manager.release_group(group)
        return [group.handle for group in admitted]

    def cancel(self, handle: Handle) -> None:
        self._waiting = deque(group for group in self._waiting if group.handle is not handle)

    def forget(self) -> None:
        self._cache.forget()

    def flops(self, handle: Handle) -> int:
        return request_flops(self._model, handle)

    def _count(self, group: SequenceGroup) -> None:
        handle = group.handle
        request: Request = handle.request
        used = handle.usage
        start, stop = self._manager.next_chunk(group, len(group.prompt))
        used.prefilled = group.first_read + 1 - start
        used.cached = start
        used.attended = attended_keys(start, stop)
        if isinstance(request, ScoreRequest):
            used.scored = len(request.continuation)
            handle.result = -self._lots.exponential(size=used.scored)
        else:
            tokens = self._manager.max_new_tokens(request)
            used.generated = request.n * tokens
            used.attended += request.n * attended_keys(stop, stop + tokens - 1)
            handle.result = [Generation((), np.zeros(0), "", "length")] * request.n
        handle.done = True


@dataclass(frozen=True, kw_only=True)
class _ExpectingRole(Role):
    """A role that lets a model write as many tokens as are expected of it."""

    expected: Callable[[Prompt, Mapping[str, Field]], int]

    def to_generate(self, prompt: Prompt, fields: Mapping[str, Field], how: Sampling) -> Any:
        tokens = min(how.max_tokens, self.expected(prompt, fields))
        return super().to_generate(prompt, fields, replace(how, max_tokens=tokens))


class _Lengths:
    """How many tokens are expected of a copy, or of a rationale, with what ends it.

    copied: where the copy of a text has rationales.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, rationale_tokens: float, copied: Mapping[str, Sequence[int]]
    ):
        self._count = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
        self._rationales = _whole_numbers(rationale_tokens)
        self._markers = self._count("<BOT>") + self._count("<EOT>")
        self._copied = copied

    def __call__(self, prompt: Prompt, fields: Mapping[str, Field]) -> int:
        if "document" not in fields:
            return next(self._rationales) + (self._count(prompt.closing) or 1)
        text = str(fields["document"])
        rationales = len(self._copied[text])
        written = sum(islice(self._rationales, rationales)) + rationales * self._markers
        return self._count(text) + written + 1


def _annotate(
    documents: Sequence[Document], role: Role, prompts: PromptSet, config: AnnotateConfig
) -> tuple[list[Annotated], Usage]:
    """What `mine` would write, and what that takes."""
    found: dict[int, Annotated] = {}
    total = Usage()

    def failed(index: int, error: Exception) -> None:
        raise error

    for first in range(0, len(documents), config.block):
        block = dict(enumerate(documents[first : first + config.block], start=first))

        def finished(index: int, result: tuple[Annotated, Usage], first: int = first) -> None:
            nonlocal total
            found[first + index], used = result
            total += used

        annotate_block(block, role, prompts, config, finished, failed)
    return [found[i] for i in range(len(documents))], total


def _copied_places(documents: Sequence[Document], kind: PlaceKind, share: float) -> dict[str, list[int]]:
    """The places at which a copy has rationales, by the text: a share of all places, evenly spread."""
    chosen: dict[str, list[int]] = {}
    due = 0.5
    for text in dict.fromkeys(document.text for document in documents):
        chosen[text] = []
        for start in find_places(text, kind):
            due += share
            if due >= 1:
                due -= 1
                chosen[text].append(start)
    return chosen


# ---- Filtering ----


def filter_work(
    documents: Sequence[Sequence[Triple]],
    model: LlamaConfig,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    config: FilterConfig,
) -> tuple[int, Work]:
    """How many triples are too long to be scored, and the work that scoring the others takes."""
    longest = min(config.row_length, model.max_position_embeddings)
    unscored = 0
    work = Work()
    for first in range(0, len(documents), config.block):
        fits, groups = fitting_groups(documents[first : first + config.block], tokenizer, prompts, longest)
        unscored += sum(not fit for of_document in fits for fit in of_document)
        work += work_of(groups, row_length=config.row_length, rows_per_batch=config.rows_per_batch)
    return unscored, work


def _stretches(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, tokens: float
) -> Iterator[str]:
    """Texts of so many tokens on average, without end, in place of rationales: stretches of the documents."""
    texts = [document.text for document in documents]
    encoded: Any = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ids = np.fromiter(chain.from_iterable(encoded), np.int64)
    start = 0
    for length in _whole_numbers(tokens):
        yield str(tokenizer.decode(ids.take(range(start, start + length), mode="wrap"))).strip()
        start = (start + length) % len(ids)


def _whole_numbers(mean: float) -> Iterator[int]:
    """Whole numbers without end that have this mean, 1 or more."""
    due = 0.0
    while True:
        due += mean
        whole = round(due)
        due -= whole
        yield whole
