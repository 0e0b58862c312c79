"""Where a model's solution ends, where it states its answer, and what stands in its boxes."""

import re

# Where a model that does not stop goes on with a question of its own, or another turn of the chat.
RUN_ON = re.compile(
    r"""<\|[a-z_]+\|> | </s> | <end_of_turn>
      | (?: ^ | (?<=[.!?:>*0-9])[ \t] )
        [#>*_ \t]{0,12}
        (?:(?:Next|New|Another|Follow-?up)\s)?
        (?:[Qq]uestion|QUESTION|Q|[Pp]roblem|PROBLEM|Exercise|Instruction|Human|User|user)
        (?:\ ?\#?[0-9]{1,3})?
        [*_]{0,3} (?: : | (?<=[0-9])\.(?=\s) | [ \t]{0,3}$ )""",
    re.VERBOSE | re.MULTILINE,
)

# What opens a statement of the answer, with or without markup. A bare "Answer:" does not: documents open
# their reasoning with it. "The answer is correct" states none: it speaks of one that was stated. "The answer
# would be" opens one only before a number: it may go on "too large".
STATEMENT = re.compile(
    r"""(?P<hashes>\#\#\#\#)
      | (?P<boxed>\\boxed\s*\{)
      | (?<![^\W_]) (?: answer[*_]{0,3}\s+[*_]{0,3} (?: is
                           | (?P<would>(?:would|will)\s+be) (?=[\s:*_$€£¥(]*+[-−]?\.?(?:[0-9]|\\[dt]?frac)) )
                     (?![^\W_])
                     | final[*_]{0,3}\s+[*_]{0,3}answer[\s*_]*+: )
        (?: [\s:,*_]*+ \b(?: actually | also | clearly | exactly | hence | indeed | just | now | only | simply
                           | still | then | therefore | thus | equal\s+to | a\s+total\s+of )\b ,?+ )*+
        (?! [\s:*_]*+ (?: consistent | correct | plausible | reasonable | right | valid | verified )\b )
        [\s:*_]*+""",
    re.VERBOSE | re.IGNORECASE,
)
HEADING = re.compile(r"[\s*_]*+[0-9]++[*_\s]*+[-.):][*_]*+\s++[*_]*+[^\W\d_]")  # as in "#### 1. The eggs"
# Before "the answer would be 21": that is of another question.
_SUPPOSED = re.compile(r"\b(?:assuming|had|if|suppose|unless|were)\b[^.;:!?\n]*+$", re.IGNORECASE)
_SENTENCE = 300  # characters before a statement that are looked at


def statements(text: str) -> list[re.Match[str]]:
    """The openings of all statements of an answer, in order: matches of STATEMENT."""
    return [
        found
        for found in STATEMENT.finditer(text)
        if not found["would"] or not _SUPPOSED.search(text, max(0, found.start() - _SENTENCE), found.start())
    ]


def solution(text: str) -> str:
    """The text up to the first question that the model asks itself, and up to the end of its turn.

    A text may open with "Question:": that one is the question asked, and stays.
    """
    for cut in RUN_ON.finditer(text):
        if before := text[: cut.start()].strip():
            return before
    return text


def braced(text: str) -> str:
    """Text up to the brace that closes the one already open; empty where it never closes."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:place]
    return ""
