"""Templated word problems: a chain of relations, each with a right and a wrong reading.

A problem names a first value and 1 to 4 relations (more in the longer split); each relation gives one step
of the solution. Every relation can be misread. Both readings of every step give integers in 1..40, along
the true solution and along the flawed human one, so that errors are never visible in the numbers alone.
"""

import hashlib
import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass

NAMES = "Ann Ben Cal Dee Eli Fay Gus Hal Ida Jay Kim Leo Mia Ned Oda Pat".split()
OBJECTS = "apples books coins shells stamps cards pens marbles beads kites".split()
LARGEST = 40
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


def compute(op: str, value: int, operand: int) -> int | None:
    """`value op operand`, or None where it is not an integer in 1..40."""
    if op == "/" and value % operand:
        return None
    result = OPERATIONS[op](value, operand)
    return result if 1 <= result <= LARGEST else None


@dataclass(frozen=True)
class Reading:
    """One way to compute a step, and the thought behind it; operand None is the other person's value."""

    op: str
    operand: int | None
    thought: str


@dataclass(frozen=True)
class Template:
    """A reading before people and numbers are known: its operand is k + `extra`, {n} in the thought."""

    op: str
    thought: str
    extra: int = 0

    def fill(self, p: str, q: str, k: int | None) -> Reading:
        operand = None if k is None else k + self.extra
        return Reading(self.op, operand, self.thought.format(p=p, q=q, n=operand))


@dataclass(frozen=True)
class Kind:
    """A kind of relation: {p} is known, {q} is asked for, {k} is the number and {o} the things.

    Names always follow a space: each is one token wherever it stands, which a small model needs to see who
    was mentioned before.
    """

    seen: tuple[str, ...]  # its phrasings
    unseen: str  # its phrasing in the unseen-phrasing split
    right: Template
    wrong: Template
    error_rate: float = 0.10  # how often people get it wrong
    weight: float = 1.0  # relative frequency among the kinds that fit a value; 0 for the last question only
    trap: bool = False  # the wrong reading is what the wording suggests
    another_person: bool = True  # {q} is not {p}
    subject: str = "So {q} has"  # the start of the step's line
    tail: str = "{o}."  # its end

    def fits(self, value: int, k: int) -> bool:
        """Whether both readings give integers in 1..40."""
        return all(compute(way.op, value, k + way.extra) is not None for way in (self.right, self.wrong))


# The order of the kinds and the number of their phrasings decide what a seed draws.
KINDS = {
    "more": Kind(
        seen=("{q} has {k} more {o} than {p}.", "Compared to {p}, {q} has {k} more {o}."),
        unseen="{q}, compared to {p}, has {k} more {o}.",
        right=Template("+", "since {q} has more than {p}, add {n}"),
        wrong=Template("-", "since {p} has more than {q}, subtract {n}"),
    ),
    "fewer": Kind(
        seen=("{q} has {k} fewer {o} than {p}.", "Compared to {p}, {q} has {k} fewer {o}."),
        unseen="{q}, compared to {p}, has {k} fewer {o}.",
        right=Template("-", "since {q} has fewer than {p}, subtract {n}"),
        wrong=Template("+", "since {p} has fewer than {q}, add {n}"),
    ),
    "times": Kind(
        seen=("{q} has {k} times as many {o} as {p}.", "Compared to {p}, {q} has {k} times as many {o}."),
        unseen="{q}, compared to {p}, has {k} times as many {o}.",
        right=Template("*", "since {q} has more than {p}, multiply by {n}"),
        wrong=Template("/", "since {q} has fewer than {p}, divide by {n}"),
    ),
    "gain": Kind(
        seen=("{p} finds {k} {o}.", "{p} buys {k} {o}."),
        unseen="{p} buys {k} more {o}.",
        right=Template("+", "since {p} gets {n} more, add {n}"),
        wrong=Template("-", "since {p} gives {n}, subtract {n}"),
        weight=0.8,
        another_person=False,
    ),
    "loss": Kind(
        seen=("{p} loses {k} {o}.", "{p} sells {k} {o}."),
        unseen="{p} sells {k} of the {o}.",
        right=Template("-", "since {p} gives {n}, subtract {n}"),
        wrong=Template("+", "since {p} gets {n} more, add {n}"),
        weight=0.8,
        another_person=False,
    ),
    "inverse_more": Kind(
        seen=("That is {k} more {o} than {q} has.", "This makes {k} more {o} than {q} has."),
        unseen="That is more {o} than {q} has, {k} more.",
        right=Template("-", "since {q} has fewer than {p}, subtract {n}"),
        wrong=Template("+", "since {q} has more than {p}, add {n}"),
        error_rate=0.63,
        weight=0.9,
        trap=True,
    ),
    "inverse_fewer": Kind(
        seen=("That is {k} fewer {o} than {q} has.", "This makes {k} fewer {o} than {q} has."),
        unseen="That is fewer {o} than {q} has, {k} fewer.",
        right=Template("+", "since {q} has more than {p}, add {n}"),
        wrong=Template("-", "since {q} has fewer than {p}, subtract {n}"),
        error_rate=0.63,
        weight=0.9,
        trap=True,
    ),
    "inverse_times": Kind(
        seen=("That is {k} times as many {o} as {q} has.", "This makes {k} times as many {o} as {q} has."),
        unseen="That is as many {o} as {q} has, {k} times as many.",
        right=Template("/", "since {q} has fewer than {p}, divide by {n}"),
        wrong=Template("*", "since {q} has more than {p}, multiply by {n}"),
        error_rate=0.60,
        weight=2.5,
        trap=True,
    ),
    "share": Kind(
        seen=("{p} shares the {o} equally with {k} friends.", "{p} and {k} friends share the {o} equally."),
        unseen="{p} shares equally with {k} friends the {o}.",
        # People forget that the one who shares also keeps a part.
        right=Template("/", "since {p} is one of {n} people, divide by {n}", extra=1),
        wrong=Template("/", "since {p} has {n} friends, divide by {n}"),
        error_rate=0.60,
        weight=5.0,
        trap=True,
        another_person=False,
    ),
    "total": Kind(
        seen=("How many {o} do {p} and {q} have together?",) * 2,
        unseen="How many {o} do {p} and {q} have together?",
        right=Template("+", "since {p} and {q} count together, add"),
        wrong=Template("-", "since {p} and {q} differ, subtract"),
        weight=0.0,
        subject="So {p} and {q} have",
        tail="{o} together.",
    ),
    "undo": Kind(
        seen=("This is after selling {k} {o}. How many {o} did {p} have before?",) * 2,
        unseen="This is after selling {k} {o}. How many {o} did {p} have before?",
        right=Template("+", "since {p} had more before, add {n}"),
        wrong=Template("-", "since {p} had fewer before, subtract {n}"),
        error_rate=0.40,
        weight=0.0,
        trap=True,
        another_person=False,
        subject="So {q} had",
    ),
}

# The operands in 2..12 with which both readings of a kind fit a value.
OPERANDS = {
    (name, value): frozenset(k for k in range(2, 13) if kind.fits(value, k))
    for name, kind in KINDS.items()
    for value in range(1, LARGEST + 1)
}


@dataclass(frozen=True)
class Relation:
    """One step of a problem: its kind, the start ("So Ben has") and the end of its line, both readings."""

    kind: str
    subject: str
    tail: str
    right: Reading
    wrong: Reading


@dataclass(frozen=True)
class Problem:
    """A question (one line of text), who has how many of what at first, and the relations to the answer."""

    question: str
    person: str
    thing: str
    first: int
    relations: tuple[Relation, ...]

    def solve(self, wrong: tuple[bool, ...]) -> tuple[list[str], int]:
        """The lines of a solution that misreads the flagged relations, and its answer.

        Raises ValueError where a step has no integer result in 1..40.
        """
        flagged = zip(self.relations, wrong, strict=True)
        return self.write([relation.wrong if misread else relation.right for relation, misread in flagged])

    def write(
        self, readings: Sequence[Reading], slip: tuple[int, int] | None = None
    ) -> tuple[list[str], int]:
        """The lines of a solution that reads each relation so, and its answer.

        slip: a step, and by how much its result is miscalculated. Raises ValueError where a step has no
        integer result in 1..40.
        """
        value = self.first
        other = self.first
        lines = []
        for number, (relation, reading) in enumerate(zip(self.relations, readings, strict=True)):
            operand = other if reading.operand is None else reading.operand
            result = compute(reading.op, value, operand)
            if result is not None and slip is not None and slip[0] == number:
                result += slip[1]
            if result is None or not 1 <= result <= LARGEST:
                raise ValueError(f"no reading of {relation.kind} fits {value}")
            lines.append(f"{relation.subject} {value} {reading.op} {operand} = {result} {relation.tail}")
            # The other person of a "together" question is the one compared with last.
            if KINDS[relation.kind].another_person:
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

    def operand(name: str) -> int | None:
        (true, _), (human, _) = state
        choices = sorted(OPERANDS[name, true] & OPERANDS[name, human])
        return rng.choice(choices) if choices else None

    def extend(name: str, q: str, k: int | None) -> None:
        kind = KINDS[name]
        form = kind.unseen if phrasing == "unseen" else rng.choice(kind.seen)
        text.append(form.format(p=p, q=q, k=k, o=o))
        right = kind.right.fill(p, q, k)
        wrong = kind.wrong.fill(p, q, k)
        chain.append(Relation(name, kind.subject.format(p=p, q=q), kind.tail.format(o=o), right, wrong))
        misread.append(rng.random() < kind.error_rate)
        for i, reading in enumerate((right, wrong if misread[-1] else right)):
            value, other = state[i]
            result = compute(reading.op, value, other if reading.operand is None else reading.operand)
            assert result is not None  # the operand was chosen to fit
            state[i] = (result, value if kind.another_person else other)

    for _ in range(length):
        fitting = [
            (name, k) for name, kind in KINDS.items() if kind.weight and (k := operand(name)) is not None
        ]
        if not fitting:
            return None, ()
        name, k = rng.choices(fitting, [KINDS[name].weight for name, _ in fitting])[0]
        q = people.pop() if KINDS[name].another_person else p
        extend(name, q, k)
        if q != p:
            p, previous = q, p

    ending = rng.random()
    if ending < 0.4 and previous != p and all(KINDS["total"].fits(*values) for values in state):
        extend("total", previous, None)
    elif ending > 0.8 and (k := operand("undo")) is not None:
        extend("undo", p, k)
    else:
        text.append(f"How many {o} does {p} have?")
    return Problem(" ".join(text), person, o, first, tuple(chain)), tuple(misread)
