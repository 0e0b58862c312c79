"""Choice by likelihood: which option of a question does a model find likeliest after it?

A question's context and all its choices are one token tree, so the context is computed once. Texts become
tokens as in lm-evaluation-harness' transformers backend (0.4.13), and so its rules give equal numbers:

| rule | the number of a choice | there |
|---|---|---|
| sum | the log-probabilities of its tokens, summed | acc |
| per_character | sum, by the characters of the choice | acc_norm |
| per_byte | sum, by its bytes in UTF-8 | acc_bytes |
| per_token | sum, by its tokens | |
| unconditional | sum, minus that of the same choice after nothing but BOS | acc_mutual_info |

The blank between context and choice is scored, but no part of the choice's length. The greatest number is the
model's choice; of equal ones the first, as argmax has it.

A rationale may stand between the context and the choices, after a blank. The tree then has both ways.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, cast

import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.evaluate.config import ChooseConfig
from rationalyst_jax.evaluate.statistics import Interval
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.trees.likelihood import Pair, Scores, score
from rationalyst_jax.lm.trees.reduction import reduce_logprobs
from rationalyst_jax.tasks.cloze import Cloze

AT_ONCE = 4096  # texts that the tokenizer gets: what it makes of one takes 100 times the memory of its ids
Rule = Literal["sum", "per_character", "per_byte", "per_token", "unconditional"]


@dataclass(frozen=True)
class Encoded:
    """A cloze and, for each of its choices, the tokens that are scored: after the context, and after BOS.

    guided: for each rationale, the choices' tokens after the context with it.
    """

    cloze: Cloze
    conditional: tuple[Pair, ...]
    unconditional: tuple[Pair, ...]
    guided: tuple[tuple[Pair, ...], ...] = ()

    @property
    def of_question(self) -> tuple[Pair, ...]:
        """All that follows the question, with and without rationales."""
        return (*self.conditional, *chain.from_iterable(self.guided))


@dataclass(frozen=True)
class ChoiceScores:
    """tokens: of each choice, how many; values: under each rule (module docstring) the number of each choice,
    in nats, or nats a character, byte or token; guided: the same under each rationale."""

    tokens: tuple[int, ...]
    values: Mapping[Rule, tuple[float, ...]]
    guided: tuple["ChoiceScores", ...] = ()

    def picked(self, rule: Rule) -> int:
        """The number of the choice that a rule takes: the greatest, and of equal ones the first."""
        return int(np.argmax(self.values[rule]))


@dataclass(frozen=True)
class GuidedAccuracy:
    """Under one rule: the accuracy with each question's own rationale, and how much more often that is right
    than none is, and than another question's."""

    own: Interval
    own_less_none: Interval
    own_less_stranger: Interval


def encode_clozes(
    tokenizer: PreTrainedTokenizerBase,
    clozes: Mapping[str, Cloze],
    rationales: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Encoded]:
    """The tokens of clozes, and of each with every rationale that is given to it, by the names of their
    questions. A blank rationale changes nothing.

    The context alone and the context with a choice are encoded, each as the tokenizer opens a text; what the
    second has beyond the length of the first is the choice. White space that ends a context belongs to the
    choice. Without a context stands BOS, or EOS where there is none. Control tokens that the text spells stay
    text. Raises ValueError naming the question that has no choice, an empty one, or none of whose tokens are
    the context's or a choice's alone.
    """
    for name, cloze in clozes.items():
        if not all(cloze.choices) or not cloze.choices:
            raise ValueError(f"question {name!r}: {'a choice is empty' if cloze.choices else 'no choices'}")
    asked = {name: [cloze] for name, cloze in clozes.items()}
    for name, of_question in (rationales or {}).items():
        asked[name] += [guided_by(clozes[name], rationale) for rationale in of_question]
    every = [cloze for of_question in asked.values() for cloze in of_question]
    contexts = iter(_ids(tokenizer, [cloze.context.rstrip() for cloze in every]))
    wholes = iter(
        _ids(tokenizer, [f"{cloze.context} {choice}" for cloze in every for choice in cloze.choices])
    )
    alone = sorted({choice for cloze in clozes.values() for choice in cloze.choices})
    after_nothing = dict(zip(alone, _ids(tokenizer, [f" {choice}" for choice in alone], False), strict=True))
    opening = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id

    encoded = {}
    for name, (cloze, *guided) in asked.items():
        pairs = []
        for one in (cloze, *guided):
            context = next(contexts)
            continuations = [next(wholes)[len(context) :] for _ in one.choices]
            if not context or not all(continuations):
                raise ValueError(f"question {name!r}: its context or a choice has no token of its own")
            pairs.append(tuple(Pair(context, continuation) for continuation in continuations))
        before = (cast(int, opening),)
        unconditional = tuple(Pair(before, after_nothing[choice]) for choice in cloze.choices)
        encoded[name] = Encoded(cloze, pairs[0], unconditional, tuple(pairs[1:]))
    return encoded


def guided_by(cloze: Cloze, rationale: str) -> Cloze:
    """The cloze with a rationale between its context and its choices; itself where the rationale is blank."""
    if not rationale.strip():
        return cloze
    return replace(cloze, context=" ".join(filter(None, (cloze.context.rstrip(), rationale.strip()))))


def check_lengths(encoded: Mapping[str, Encoded], limits: Mapping[str, int]) -> None:
    """Raises ValueError naming the first question of which a choice with its context is longer than a limit,
    which is named too."""
    for name, one in encoded.items():
        length, guided = max(map(len, one.conditional)), max(map(len, one.of_question))
        for what, longest in limits.items():
            if guided > longest:
                with_it = "its longest choice" if length > longest else "a rationale and its longest choice"
                raise ValueError(f"question {name!r}: {guided} tokens with {with_it}, {what} {longest}")


@dataclass(frozen=True)
class Begun:
    """Questions whose choices a device scores while the host goes on."""

    encoded: Mapping[str, Encoded]
    unconditional: bool
    scores: Scores

    def result(self, working: Callable[[int], None] = lambda nodes: None) -> dict[str, ChoiceScores]:
        """The numbers of every choice, by the names of the questions. Waits for the device, and tells
        `working` as `Scores.result` does.

        Raises ValueError naming a question with a log-likelihood that is not finite (a broken model).
        """
        logprobs = self.scores.result(working)
        alone = iter(logprobs.pop()) if self.unconditional else None
        found = {}
        for (name, one), of_question in zip(self.encoded.items(), logprobs, strict=True):
            count = len(one.cloze.choices)
            of_alone = None if alone is None else [next(alone) for _ in range(count)]
            starts = range(0, len(of_question), count)
            plain, *guided = (
                choice_scores(one.cloze, of_question[start : start + count], of_alone) for start in starts
            )
            for scores in (plain, *guided):
                if not np.isfinite([*chain(*scores.values.values())]).all():
                    raise ValueError(f"question {name!r}: the log-likelihood of a choice is not finite")
            found[name] = replace(plain, guided=tuple(guided))
        return found


def begin(
    model: Llama, encoded: Mapping[str, Encoded], config: ChooseConfig, mesh: Mesh | None = None
) -> Begun:
    """Scores the choices of questions. Returns as soon as everything is dispatched.

    Each question is one token tree. Choices without their question are one more, of all questions together:
    a letter that answers many of them is computed once. Raises as `score`.
    """
    groups = [one.of_question for one in encoded.values()]
    if config.unconditional:
        groups.append(tuple(pair for one in encoded.values() for pair in one.unconditional))
    rows: Any = {"row_length": config.row_length, "rows_per_batch": config.rows_per_batch, "mesh": mesh}
    return Begun(encoded, config.unconditional, score(model, groups, **rows))


def choice_scores(
    cloze: Cloze, logprobs: Sequence[np.ndarray], alone: Sequence[np.ndarray] | None
) -> ChoiceScores:
    """The numbers of a cloze's choices from their tokens' log-probabilities, after the context and `alone`
    (None: without the rule unconditional)."""
    sums = np.array([reduce_logprobs(of_choice, "sum") for of_choice in logprobs])
    values: dict[Rule, np.ndarray] = {
        "sum": sums,
        "per_character": sums / [len(choice) for choice in cloze.choices],
        "per_byte": sums / [len(choice.encode()) for choice in cloze.choices],
        "per_token": sums / [len(of_choice) for of_choice in logprobs],
    }
    if alone is not None:
        values["unconditional"] = sums - [reduce_logprobs(of_choice, "sum") for of_choice in alone]
    lists: dict[Rule, tuple[float, ...]] = {rule: tuple(numbers.tolist()) for rule, numbers in values.items()}
    return ChoiceScores(tuple(map(len, logprobs)), lists)


def _ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], opened: bool = True
) -> list[tuple[int, ...]]:
    """The tokens of each text, `opened` with what the tokenizer itself puts before it."""
    encode: Any = tokenizer
    options = {"split_special_tokens": True, "return_attention_mask": False, "add_special_tokens": opened}
    starts = range(0, len(texts), AT_ONCE)
    found = (encode(texts[start : start + AT_ONCE], **options)["input_ids"] for start in starts)
    return [tuple(ids) for ids in chain.from_iterable(found)]
