"""What the benchmarks work on: documents with rationales, and the token sequences the filter makes of them.

A document is the list of its triples. Real ones were annotated by a language model but are short; long ones
are real texts with rationales written by a rule, so that their number can be chosen.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.trees.likelihood import Pair
from rationalyst_jax.mine.documents import Document, read_annotations, read_documents
from rationalyst_jax.mine.likelihood_filter import filter_pairs
from rationalyst_jax.mine.parse import Parsed, Rationale
from rationalyst_jax.mine.triples import Triple, cut_triples, extract
from rationalyst_jax.prompts.prompt import PromptSet

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
# A sentence or a line ends, and something follows.
_END = re.compile(r"(?:[.!?][\"')\]]*\s|\S[^\S\n]*\n)\s*(?=\S)")
# A text has to have an end in so many characters: prose, not tables or code.
_CHARACTERS_PER_END = 200
_WORD = re.compile(r"[^\W\d_]+")


def shared_data() -> Path:
    """The folder of real rows beside the project; without it the program ends with one line."""
    if not _SHARED.is_dir():
        raise SystemExit(f"{_SHARED}: no such folder, and this benchmark works on the real rows in it")
    return _SHARED


def real_documents(shared: Path) -> list[list[Triple]]:
    """Word problems annotated by Llama-3-8B: a few hundred tokens and a handful of rationales each."""
    annotations = read_annotations(shared / "rationalyst" / "extractor_output.jsonl")
    by_document = groupby(extract(annotations).triples, lambda triple: triple.document_id)
    return [list(triples) for _, triples in by_document]


def long_documents(shared: Path, rationales: int, documents: int, characters: int) -> list[list[Triple]]:
    """Web pages, articles and papers cut to about `characters`, each with so many rationales.

    The texts are the same whatever the number of rationales. Raises ValueError where there are too few of
    them, or not enough sentences in each.
    """
    ends = characters // _CHARACTERS_PER_END
    if rationales >= ends:
        raise ValueError(f"{characters} characters are too few for {rationales} rationales")
    return [_annotate(document, rationales) for document in long_texts(shared, documents, characters)]


def long_texts(shared: Path, documents: int, characters: int) -> list[Document]:
    """Web pages, articles and papers cut to about `characters`. Raises ValueError where there are too few."""
    path = shared / "pile_like" / "mixed.jsonl"
    long = (document for document in read_documents(path) if len(document.text) >= characters)
    cut = (replace(one, text=one.text[:characters].rsplit(maxsplit=1)[0]) for one in long)
    kept = [document for document in cut if len(_starts(document.text)) >= characters // _CHARACTERS_PER_END]
    if len(kept) < documents:
        raise ValueError(f"{path}: {len(kept)} texts of {characters} characters, not {documents}")
    # From all over the file, which is sorted by kind.
    return [kept[i * len(kept) // documents] for i in range(documents)]


def filter_groups(
    documents: Iterable[Sequence[Triple]], tokenizer: PreTrainedTokenizerBase, prompts: PromptSet
) -> list[list[Pair]]:
    """Each document's sequences as the filter scores them, two of every triple."""
    return [
        [pair for triple in document for pair in filter_pairs(triple, tokenizer, prompts)]
        for document in documents
    ]


def _starts(text: str) -> list[int]:
    """Where in `text` a sentence or line starts, the first left out."""
    return [end.end() for end in _END.finditer(text)]


def _annotate(document: Document, rationales: int) -> list[Triple]:
    """Triples of rationales before evenly spaced sentences; each names the sentence's longest words."""
    starts = _starts(document.text)
    bounds = [*starts, len(document.text)]
    placed = []
    for i in range(1, rationales + 1):
        place = i * len(starts) // (rationales + 1)
        words = dict.fromkeys(_WORD.findall(document.text[bounds[place] : bounds[place + 1]]))
        longest = sorted(words, key=len, reverse=True)[:4]
        told = ", ".join(word for word in words if word in longest) or "figures"
        rationale = f"To go on from here, the writer needs to bring up {told}."
        placed.append(Rationale(rationale, bounds[place], "clean"))
    return cut_triples(document, Parsed("exact", 1.0, tuple(placed)))
