"""Token sharing: what is computed for the triples of a document, apart and as one tree."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.trees.tree import build_tree
from rationalyst_jax.mine.triples import Triple
from rationalyst_jax.prompts.prompt import PromptSet, render

# What each use renders of a triple: prompt, target, and whether the target is closed.
USES: Mapping[str, Sequence[tuple[str, str, bool]]] = {
    "filter": (("follow", "following", False), ("follow_guided", "following", False)),
    "fine-tuning": (("rationale", "rationale", True),),
}


@dataclass(frozen=True)
class Sharing:
    """Sequences of one use, their tokens when computed apart, and the nodes of one tree per document."""

    sequences: int
    apart: int
    nodes: int


def measure(
    triples: Iterable[Triple], use: str, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet
) -> Sharing:
    """Counts the tokens that `use` needs for all triples."""
    documents: dict[str, list[tuple[int, ...]]] = {}
    for triple in triples:
        for name, target, close in USES[use]:
            given = {"preceding": triple.preceding}
            if target != "rationale":
                given["rationale"] = triple.rationale
            context, ids = render(
                tokenizer, prompts[name], given, target=getattr(triple, target), close=close
            )
            documents.setdefault(triple.document_id, []).append(context + ids)
    groups = documents.values()
    return Sharing(
        sequences=sum(map(len, groups)),
        apart=sum(len(sequence) for group in groups for sequence in group),
        nodes=sum(len(build_tree(group)[0]) for group in groups),
    )
