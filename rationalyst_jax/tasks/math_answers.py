"""What an answer of MATH is made of, and whether two of them mean the same.

An answer is taken apart where its notation says how its parts compare: a tuple in order, a set in any order,
an interval with its ends, a number with its base and its unit. Only what is left, one expression against
another, is algebra. So nothing that a computer algebra system reads loosely (a base as an index, (1, 2) as an
interval or a set, "50%" as 0.5) decides a verdict.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from rationalyst_jax.tasks.latex import exact, measure, plain, scale

# Whether two expressions are equal; None where that isn't known.
Equal = Callable[[str, str], bool | None]

MAX_DEPTH = 5  # of brackets within brackets
OPENING = "([{"
CLOSING = ")]}"

NAME = re.compile(
    r"""(?: \\?[A-Za-z]+ | \\text\{[A-Za-z]\} | m?\\angle\ ?[A-Z]+ | \\overline\{[A-Z]+\} | \|[A-Z]+\|
          | \[[A-Z]+\]
          | \([A-Za-z](?:,\ [A-Za-z])+\) )
        (?: '+ | _(?:[0-9A-Za-z]|\{[^{}]*\}) | \^\{-1\} )* (?: \([A-Za-z0-9,\ ]*\) )?""",
    re.VERBOSE,
)
BASED = re.compile(r"\(?(?:\\text\{)?(?P<digits>[0-9A-F]+)\}?\)?_(?P<base>[0-9]|\{[0-9]+\})")
MATRIX = re.compile(
    r"\\begin\{(?P<kind>pmatrix|matrix|array)\}(?:\{[clr|]*\})?(?P<rows>.*)\\end\{(?P=kind)\}", re.DOTALL
)
UNIT = re.compile(
    r"(?P<value>.+?)\\text\{(?P<unit>[A-Za-z. -]+)\}(?P<power>\^(?:[0-9]|\{[0-9]\}))?", re.DOTALL
)
MODULUS = re.compile(r"(?P<value>.+?)(?:\\pmod|\\mod|\(\\bmod|\\bmod)\{?(?P<modulus>[0-9A-Za-z]+)\}?\)?")
FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
RELATION = re.compile(r"\\le|\\ge|\\ne|\\approx|\\equiv|<|>|=")
# A unit of these is none: it changes the number.
CHANGING = set(
    "and or not more less fewer than least most over times plus minus remainder mod base if for all".split()
)
CHANGING |= set(
    "dozen dozens score pair pairs half halves third thirds quarter quarters fifths tenths hundredths".split()
)
LESS = ("<", r"\le")
FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


@dataclass(frozen=True)
class Words:
    """An answer that is no mathematics: "east", "(C)"."""

    latex: str
    text: str


@dataclass(frozen=True)
class Quantity:
    """An expression, or an equation or inequality (`relation`), with what stands around it.

    name: "x" of "x = 5". base: "8" of 12_8. unit: as written, with a dollar or percent sign as a word.
    """

    latex: str
    expression: str
    name: str = ""
    unit: str = ""
    base: str = ""
    relation: bool = False


@dataclass(frozen=True)
class Group:
    """Parts with brackets: "()", "[)" and the like, ordered; "" a list and "{}" a set, in any order; "∪" a
    union of intervals; "matrix" and "row"; ":" a ratio or a time."""

    latex: str
    brackets: str
    parts: tuple["Answer", ...]


Answer = Words | Quantity | Group


# ---- Reading ----


def read(latex: str, depth: int = 0) -> Answer:
    """A plain answer (`latex.plain`) taken apart."""
    latex = _bare(latex)
    if latex == r"\mathbb{R}":
        latex = r"(-\infty, \infty)"
    if latex == r"\emptyset":
        return Group(latex, "{}", ())
    if depth < MAX_DEPTH and (group := _group(latex, depth)) is not None:
        return group
    if (words := re.fullmatch(r"\\text\{([^{}]*)\}", latex)) is not None:
        return _words(latex, words[1], depth)
    return _quantity(latex, depth)


def _group(latex: str, depth: int) -> Group | None:
    """What has parts, or None."""

    def parts(texts: Iterable[str]) -> Iterator[Answer]:
        for text in texts:
            part = read(text.strip(), depth + 1)
            # "1 \pm 2" in a list is two of its elements
            yield from part.parts if isinstance(part, Group) and part.brackets == "" else (part,)

    if len(members := _split(latex, r"\cup")) > 1:
        return Group(latex, "∪", tuple(parts(members)))
    if latex.startswith(r"\{") and _closing(latex, 1) == len(latex) - 1:
        inside = latex[2:-2].strip()
        return Group(latex, "{}", _distinct(parts(_split(inside, ",") if inside else ())))
    if latex[:1] in ("(", "[") and latex[-1:] in (")", "]") and _closing(latex, 0) == len(latex) - 1:
        members = _split(latex[1:-1], ",")
        if len(members) > 1:
            return Group(
                latex, latex[0] + latex[-1], tuple(read(member.strip(), depth + 1) for member in members)
            )
    for separator in (";", ","):
        if len(members := _split(latex, separator)) > 1:
            return Group(latex, "", tuple(parts(members)))
    if (matrix := MATRIX.fullmatch(latex)) is not None:
        rows = [row for row in matrix["rows"].split(r"\\") if row.strip()]
        cells = [tuple(read(cell.strip(), depth + 1) for cell in row.split("&")) for row in rows]
        return Group(latex, "matrix", tuple(Group(r, "row", c) for r, c in zip(rows, cells, strict=True)))
    if len(members := _split(latex, ":")) > 1 and r"\text" not in members[0]:
        return Group(latex, ":", tuple(read(member, depth + 1) for member in members))
    if (interval := _interval(latex)) is not None:
        return interval
    name, _, of = latex.partition(r"\in")
    if NAME.fullmatch(name) and of[:1] in (" ", "[", "(", "\\"):
        inner = read(of.strip(), depth + 1)
        return inner if isinstance(inner, Group) else None
    name, equals, value = latex.partition("=")
    if equals and NAME.fullmatch(name) and isinstance(inner := read(value, depth + 1), Group):
        return inner
    if re.search(r"\\pm(?![A-Za-z])", latex) and len(RELATION.findall(latex)) <= 1:
        signed = (re.sub(r"\\pm ?", sign, latex).replace(r"\mp", other) for sign, other in ("+-", "-+"))
        return Group(latex, "", tuple(read(re.sub(r"(^|[=(])\+", r"\1", one), depth + 1) for one in signed))
    return None


def _interval(latex: str) -> Group | None:
    """An inequality of one name as the interval that it says: "x > 3", "-1 \\le x < 2"."""
    sides = re.split(r"(\\[lg]e(?![A-Za-z])|<|>)", latex)
    sides = [side.strip() for side in sides]
    if len(sides) == 3 and NAME.fullmatch(sides[2]):
        sides = [sides[2], FLIPPED[sides[1]], sides[0]]
    if (
        len(sides) == 3
        and NAME.fullmatch(sides[0])
        and not re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", sides[2]))
    ):
        bound = read(sides[2], MAX_DEPTH)
        closed = sides[1] in (r"\le", r"\ge")
        infinite = Quantity(r"\infty", r"\infty")
        if sides[1] in LESS:
            return Group(
                latex,
                "(]" if closed else "()",
                (replace(infinite, latex=r"-\infty", expression=r"-\infty"), bound),
            )
        return Group(latex, "[)" if closed else "()", (bound, infinite))
    if len(sides) == 5 and NAME.fullmatch(sides[2]) and (sides[1] in LESS) == (sides[3] in LESS):
        if sides[1] not in LESS:
            sides = [sides[4], FLIPPED[sides[3]], sides[2], FLIPPED[sides[1]], sides[0]]
        brackets = ("(" if sides[1] == "<" else "[") + (")" if sides[3] == "<" else "]")
        return Group(latex, brackets, (read(sides[0], MAX_DEPTH), read(sides[4], MAX_DEPTH)))
    return None


def _words(latex: str, text: str, depth: int) -> Answer:
    text = text.strip(" .,;:!?\"'")
    if depth < MAX_DEPTH and (text[:1].isdigit() or text[:1] == "-"):
        return read(plain(text), MAX_DEPTH)  # \text{12 cm}
    letters = [letter.strip(" ()") for letter in re.split(r",| and ", text)]
    if len(letters) > 1 and all(len(letter) == 1 for letter in letters):
        return Group(latex, "", tuple(Words(letter, letter) for letter in letters))
    return Words(latex, _spoken(text))


def _quantity(latex: str, depth: int) -> Quantity:
    """An expression without the name before it and the unit behind it."""
    approximate = latex.removeprefix(r"\approx").strip()
    *sides, last = re.split(r"(?<!\\)=|\\equiv", approximate)
    name = ""
    expression = last.strip()
    relation = bool(RELATION.search(re.sub(r"\\left|\\leq?qslant", "", expression)))
    if sides:
        name = sides[0].strip() if NAME.fullmatch(sides[0].strip()) else ""
        if not name and not all(_constant(side) for side in sides):
            return Quantity(latex, approximate, relation=True)
    if (based := BASED.fullmatch(expression)) is not None and re.search("[0-9]", based["digits"]):
        return Quantity(latex, based["digits"], name=name, base=based["base"].strip("{}"))
    expression, unit = _without_unit(expression)
    return Quantity(latex, _bare(expression), name=name, unit=unit, relation=relation)


def _without_unit(expression: str) -> tuple[str, str]:
    """An expression without its unit, and that; a scale ("million") becomes a factor."""
    if re.match(r"-?\\\$", expression):
        return plain(expression.replace(r"\$", "", 1)), "dollar"
    if expression.endswith(r"\%"):
        return plain(expression[:-2]), "percent"
    if expression.endswith(r"^\circ") and not FUNCTION.search(expression):
        return plain(expression[: -len(r"^\circ")]), "degree"
    if (modulus := MODULUS.fullmatch(expression)) is not None:
        return plain(modulus["value"]), "mod " + modulus["modulus"]
    if (found := UNIT.fullmatch(expression)) is not None and not CHANGING & set(found["unit"].split()):
        value = plain(found["value"])
        factor = scale(found["unit"])
        if factor > 1:
            number = exact(value)
            value = rf"{value}\cdot {factor}" if number is None else plain(str(number * factor))
            return value, " ".join(word for word in found["unit"].split() if scale(word) == 1)
        return value, found["unit"].strip() + (found["power"] or "")
    return expression, ""


# ---- Comparing ----


def same(answer: Answer, gold: Answer, equal: Equal) -> bool | None:
    """Whether two answers mean the same, `equal` deciding on expressions; None where it doesn't know.

    A unit, a name and the braces of a set with one element may be missing on either side; where both have
    them they must agree. A base must be there on both sides or on none.
    """
    answer = _only(answer)
    gold = _only(gold)
    match answer, gold:
        case Words(), Words():
            return answer.text == gold.text
        case Quantity(), Quantity():
            return _same_quantity(answer, gold, equal)
        case Group(), Group():
            return _same_group(answer, gold, equal)
        case (Words() as words, Quantity() as quantity) | (Quantity() as quantity, Words() as words):
            return quantity.expression.isalpha() and _spoken(quantity.expression) == words.text
    if "matrix" in answer.latex and "matrix" in gold.latex:
        return equal(answer.latex, gold.latex)  # one is a number times a matrix
    return False


def exactly(answer: str, gold: str) -> bool | None:
    """An `Equal` without algebra: equal writing, or exact numbers, or None."""
    if answer == gold:
        return True
    if r"\text" in answer + gold or r"\infty" in (answer.lstrip("-"), gold.lstrip("-")):
        return False
    values = exact(answer), exact(gold)
    return None if None in values else values[0] == values[1]


def _same_quantity(answer: Quantity, gold: Quantity, equal: Equal) -> bool | None:
    if answer.base or gold.base:
        return answer.base == gold.base and answer.expression == gold.expression
    if not _agree(answer.unit, gold.unit):
        return False
    if answer.relation != gold.relation or (answer.name and gold.name and answer.name != gold.name):
        both = all(side.name or side.relation for side in (answer, gold))
        return equal(answer.latex, gold.latex) if both else False
    return equal(answer.expression, gold.expression)


def _same_group(answer: Group, gold: Group, equal: Equal) -> bool | None:
    kinds = {answer.brackets, gold.brackets}
    if (kinds != {"", "{}"} and len(kinds) > 1) or len(answer.parts) != len(gold.parts):
        return False
    if not kinds & {"", "{}", "∪"}:
        return _all(same(a, g, equal) for a, g in zip(answer.parts, gold.parts, strict=True))
    # In any order. Equality is transitive, so a part may take any of those it equals.
    left = list(gold.parts)
    unknown = False
    for part in answer.parts:
        found = [same(part, other, equal) for other in left]
        if True in found:
            del left[found.index(True)]
        elif None not in found:
            return False
        else:
            unknown = True
    return None if unknown else True


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    known = list(verdicts)
    if False in known:
        return False
    return None if None in known else True


def _agree(unit: str, other: str) -> bool:
    """Whether nothing speaks against two units being one."""
    if not unit or not other or _spoken(unit) == _spoken(other):
        return True
    if unit.startswith("mod ") or other.startswith("mod "):
        return False
    measures = measure(unit), measure(other)
    return "" in measures or measures[0] == measures[1]


def _only(answer: Answer) -> Answer:
    """The one element of a set of one."""
    while isinstance(answer, Group) and answer.brackets in ("{}", "", "∪") and len(answer.parts) == 1:
        [answer] = answer.parts
    return answer


def _distinct(parts: Iterable[Answer]) -> tuple[Answer, ...]:
    kept: list[Answer] = []
    for part in parts:
        if not any(same(part, other, exactly) for other in kept):
            kept.append(part)
    return tuple(kept)


def _constant(side: str) -> bool:
    """Whether a side of an equation is a calculation: then only the last side is the answer."""
    return not re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", side))


def _spoken(text: str) -> str:
    """Words in one way of writing. What may be variables or the letters of options keeps its case."""
    text = " ".join(re.sub(r"[()\"'.*-]", " ", text).split())
    return text if text.isupper() and len(text) <= 3 else text.casefold()


# ---- Brackets ----


def _closing(latex: str, opening: int) -> int:
    """The place of the bracket that closes the one at `opening`, of any kind; -1 where none does."""
    depth = 0
    for place in range(opening, len(latex)):
        depth += (latex[place] in OPENING) - (latex[place] in CLOSING)
        if depth == 0:
            return place
    return -1


def _split(latex: str, separator: str) -> list[str]:
    """A text at the separators that stand in no bracket."""
    parts = [""]
    depth = 0
    place = 0
    while place < len(latex):
        if depth == 0 and latex.startswith(separator, place):
            parts.append("")
            place += len(separator)
            continue
        depth += (latex[place] in OPENING) - (latex[place] in CLOSING)
        parts[-1] += latex[place]
        place += 1
    return parts


def _bare(latex: str) -> str:
    """Without brackets that hold the whole and separate nothing: "(5)", "{5}"."""
    latex = latex.strip()
    while (
        latex[:1] in ("(", "{")
        and _closing(latex, 0) == len(latex) - 1
        and latex[-1] == {"(": ")", "{": "}"}[latex[0]]
    ):
        if len(_split(latex[1:-1], ",")) > 1:
            break
        latex = latex[1:-1].strip()
    return latex
