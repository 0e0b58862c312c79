"""Templated word problems: a chain of relations, each with a right and a wrong reading.

A problem names a first value and 1 to 4 relations (more in the longer split); each relation gives one step
of the solution. Every relation can be misread. Both readings of every step give integers in 1..40, along
the true solution and along the flawed human one, so that errors are never visible in the numbers alone.
"""

import hashlib
import random
from dataclasses import dataclass

NAMES = "Ann Ben Cal Dee Eli Fay Gus Hal Ida Jay Kim Leo Mia Ned Oda Pat".split()
OBJECTS = "apples books coins shells stamps cards pens marbles beads kites".split()
LARGEST = 40

# Relative frequency of a kind among those that fit the current value, and how often people get it wrong.
# The last five are the traps: the wrong reading is what the wording suggests.
KINDS = {
    "more": (1.0, 0.10),
    "fewer": (1.0, 0.10),
    "times": (1.0, 0.10),
    "gain": (0.8, 0.10),
    "loss": (0.8, 0.10),
    "inverse_more": (0.9, 0.63),
    "inverse_fewer": (0.9, 0.63),
    "inverse_times": (2.5, 0.60),
    "share": (5.0, 0.60),
}
TOTAL_ERROR = 0.10
UNDO_ERROR = 0.40
TRAPS = frozenset({"inverse_more", "inverse_fewer", "inverse_times", "share", "undo"})

# {p} is known, {q} is asked for; the third phrasing of a kind is only used by the unseen-phrasing split.
PHRASINGS = {
    "more": (
        "{q} has {k} more {o} than {p}.",
        "Compared to {p}, {q} has {k} more {o}.",
        "{q}, compared to {p}, has {k} more {o}.",
    ),
    "fewer": (
        "{q} has {k} fewer {o} than {p}.",
        "Compared to {p}, {q} has {k} fewer {o}.",
        "{q}, compared to {p}, has {k} fewer {o}.",
    ),
    "times": (
        "{q} has {k} times as many {o} as {p}.",
        "Compared to {p}, {q} has {k} times as many {o}.",
        "{q}, compared to {p}, has {k} times as many {o}.",
    ),
    "gain": ("{p} finds {k} {o}.", "{p} buys {k} {o}.", "{p} buys {k} more {o}."),
    "loss": ("{p} loses {k} {o}.", "{p} sells {k} {o}.", "{p} sells {k} of the {o}."),
    "inverse_more": (
        "That is {k} more {o} than {q} has.",
        "This makes {k} more {o} than {q} has.",
        "That is more {o} than {q} has, {k} more.",
    ),
    "inverse_fewer": (
        "That is {k} fewer {o} than {q} has.",
        "This makes {k} fewer {o} than {q} has.",
        "That is fewer {o} than {q} has, {k} fewer.",
    ),
    "inverse_times": (
        "That is {k} times as many {o} as {q} has.",
        "This makes {k} times as many {o} as {q} has.",
        "That is as many {o} as {q} has, {k} times as many.",
    ),
    "share": (
        "{p} shares the {o} equally with {k} friends.",
        "{p} and {k} friends share the {o} equally.",
        "{p} shares equally with {k} friends the {o}.",
    ),
    "total": ("How many {o} do {p} and {q} have together?",) * 3,
    "undo": ("This is after selling {k} {o}. How many {o} did {p} have before?",) * 3,
}

# Thoughts behind the right and the wrong reading; {n} is the operand. Names always follow a space: each
# is one token wherever it stands, which a small model needs to see who was mentioned before.
THOUGHTS = {
    "more": ("since {q} has more than {p}, add {n}", "since {p} has more than {q}, subtract {n}"),
    "fewer": ("since {q} has fewer than {p}, subtract {n}", "since {p} has fewer than {q}, add {n}"),
    "times": ("since {q} has more than {p}, multiply by {n}", "since {q} has fewer than {p}, divide by {n}"),
    "gain": ("since {p} gets {n} more, add {n}", "since {p} gives {n}, subtract {n}"),
    "loss": ("since {p} gives {n}, subtract {n}", "since {p} gets {n} more, add {n}"),
    "inverse_more": ("since {q} has fewer than {p}, subtract {n}", "since {q} has more than {p}, add {n}"),
    "inverse_fewer": ("since {q} has more than {p}, add {n}", "since {q} has fewer than {p}, subtract {n}"),
    "inverse_times": (
        "since {q} has fewer than {p}, divide by {n}",
        "since {q} has more than {p}, multiply by {n}",
    ),
    "share": ("since {p} is one of {n} people, divide by {n}", "since {p} has {n} friends, divide by {n}"),
    "total": ("since {p} and {q} count together, add", "since {p} and {q} differ, subtract"),
    "undo": ("since {p} had more before, add {n}", "since {p} had fewer before, subtract {n}"),
}


# Operation of the right and of the wrong reading on the known value; the operand is k but for sharing, where
# people forget that the one who shares also keeps a part.
OPERATIONS = {
    "more": ("+", "-"),
    "fewer": ("-", "+"),
    "times": ("*", "/"),
    "gain": ("+", "-"),
    "loss": ("-", "+"),
    "inverse_more": ("-", "+"),
    "inverse_fewer": ("+", "-"),
    "inverse_times": ("/", "*"),
    "share": ("/", "/"),
    "total": ("+", "-"),
    "undo": ("+", "-"),
}


def compute(op: str, value: int, operand: int) -> int | None:
    """`value op operand`, or None where it is not an integer in 1..40."""
    match op:
        case "+":
            result = value + operand
        case "-":
            result = value - operand
        case "*":
            result = value * operand
        case _:
            result, rest = divmod(value, operand)
            if rest:
                return None
    return result if 1 <= result <= LARGEST else None


@dataclass(frozen=True)
class Reading:
    """One way to compute a step, and the thought behind it; operand None is the other person's value."""

    op: str
    operand: int | None
    thought: str


@dataclass(frozen=True)
class Relation:
    """One step of a problem: its kind, the start of its line ("So Ben has"), both readings, error rate."""

    kind: str
    subject: str
    tail: str
    right: Reading
    wrong: Reading
    error_rate: float


@dataclass(frozen=True)
class Problem:
    """A question (one line of text), who has how many of what at first, and the relations to the answer."""

    question: str
    person: str
    thing: str
    first: int
    relations: tuple[Relation, ...]

    @property
    def is_trap(self) -> bool:
        return any(relation.kind in TRAPS for relation in self.relations)

    def solve(self, wrong: tuple[bool, ...]) -> tuple[list[str], int]:
        """The lines of a solution that misreads the flagged relations, and its answer.

        Raises ValueError where a step has no integer result in 1..40.
        """
        value, other, lines = self.first, self.first, []
        for relation, misread in zip(self.relations, wrong, strict=True):
            reading = relation.wrong if misread else relation.right
            operand = other if reading.operand is None else reading.operand
            result = compute(reading.op, value, operand)
            if result is None:
                raise ValueError(f"no reading of {relation.kind} fits {value}")
            lines.append(f"{relation.subject} {value} {reading.op} {operand} = {result} {relation.tail}")
            # The other person of a "together" question is the one compared with last.
            if relation.kind not in ("gain", "loss", "share", "undo"):
                other = value
            value = result
        return [*lines, f"The answer is {value}."], value

    @property
    def answer(self) -> int:
        return self.solve((False,) * len(self.relations))[1]


def split_of(question: str) -> str:
    """The one split a question may appear in, by its hash: no question is shared between splits."""
    bucket = hashlib.sha256(question.encode()).digest()[0]
    return "pretrain" if bucket < 192 else "mine" if bucket < 224 else "evaluate"


def _readings(kind: str, p: str, q: str, k: int | None) -> tuple[Reading, Reading]:
    right_op, wrong_op = OPERATIONS[kind]
    right, wrong = THOUGHTS[kind]
    right_n = k + 1 if kind == "share" and k is not None else k
    return (
        Reading(right_op, right_n, right.format(p=p, q=q, n=right_n)),
        Reading(wrong_op, k, wrong.format(p=p, q=q, n=k)),
    )


def _fits(kind: str, value: int, operand: int) -> bool:
    """Whether both readings of `kind` give integers in 1..40."""
    right_op, wrong_op = OPERATIONS[kind]
    right = compute(right_op, value, operand + 1 if kind == "share" else operand)
    return right is not None and compute(wrong_op, value, operand) is not None


# The operands in 2..12 with which both readings of a kind fit a value.
OPERANDS = {
    (kind, value): frozenset(k for k in range(2, 13) if _fits(kind, value, k))
    for kind in OPERATIONS
    for value in range(1, LARGEST + 1)
}


def draw(
    rng: random.Random,
    split: str,
    *,
    relations: tuple[int, ...] = (1, 2, 2, 3, 3, 3, 4, 4),
    phrasing: str = "seen",
) -> tuple[Problem, tuple[bool, ...]]:
    """A random problem of a split, and the misreadings of one person who solves it.

    `relations` are the lengths to draw from, `phrasing` is "seen" or "unseen".
    """
    while True:
        problem, misread = _attempt(rng, rng.choice(relations), phrasing)
        if problem is not None and split_of(problem.question) == split:
            return problem, misread


def _attempt(rng: random.Random, length: int, phrasing: str) -> tuple[Problem | None, tuple[bool, ...]]:
    """One try at a chain of `length` relations; None when no relation fits the values it got to."""
    people = rng.sample(NAMES, length + 2)
    o = rng.choice(OBJECTS)
    first = rng.randint(3, LARGEST)
    person = p = previous = people.pop()
    text = [f"At first {p} has {first} {o}."]
    # Current and previous person's value: of the true solution, and of the person who errs.
    state = [(first, first), (first, first)]
    chain: list[Relation] = []
    misread: list[bool] = []

    def phrase(kind: str, q: str, k: int) -> str:
        variants = PHRASINGS[kind]
        form = variants[2] if phrasing == "unseen" else rng.choice(variants[:2])
        return form.format(p=p, q=q, k=k, o=o)

    def operand(kind: str) -> int | None:
        (true, _), (human, _) = state
        choices = sorted(OPERANDS[kind, true] & OPERANDS[kind, human])
        return rng.choice(choices) if choices else None

    def extend(kind: str, q: str, k: int | None, error_rate: float) -> None:
        right, wrong = _readings(kind, p, q, k)
        verb, who, tail = "has", f"So {q}", f"{o}."
        if kind == "total":
            verb, who, tail = "have", f"So {p} and {q}", f"{o} together."
        elif kind == "undo":
            verb = "had"
        chain.append(Relation(kind, f"{who} {verb}", tail, right, wrong, error_rate))
        misread.append(rng.random() < error_rate)
        for i, reading in enumerate((right, wrong if misread[-1] else right)):
            value, other = state[i]
            result = compute(reading.op, value, other if reading.operand is None else reading.operand)
            assert result is not None  # the operand was chosen to fit
            state[i] = (result, other if q == p else value)

    for _ in range(length):
        kinds = [
            (kind, k, weight, error)
            for kind, (weight, error) in KINDS.items()
            if (k := operand(kind)) is not None
        ]
        if not kinds:
            return None, ()
        kind, k, _, error = rng.choices(kinds, [weight for _, _, weight, _ in kinds])[0]
        q = p if kind in ("gain", "loss", "share") else people.pop()
        text.append(phrase(kind, q, k))
        extend(kind, q, k, error)
        if q != p:
            p, previous = q, p

    ending = rng.random()
    if ending < 0.4 and previous != p and all(_fits("total", *values) for values in state):
        text.append(phrase("total", previous, 0))
        extend("total", previous, None, TOTAL_ERROR)
    elif ending > 0.8 and (k := operand("undo")) is not None:
        text.append(phrase("undo", p, k))
        extend("undo", p, k, UNDO_ERROR)
    else:
        text.append(f"How many {o} does {p} have?")
    return Problem(" ".join(text), person, o, first, tuple(chain)), tuple(misread)
