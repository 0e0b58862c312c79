"""What a compiled program takes of a chip and sends between chips, read from the compiler's own output.

Compiling needs no chip, so all this is known before one is rented. XLA counts the body of a loop once; here
what is executed is counted: every loop's body as often as it turns.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jax.stages import Compiled

from rationalyst_jax.lm.devices.chips import Chip


@dataclass(frozen=True)
class ProgramMemory:
    """Bytes that a program needs on each chip. Outputs that reuse the memory of donated arguments:
    `aliased`."""

    arguments: int
    outputs: int
    aliased: int
    temporary: int
    code: int

    @property
    def peak(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporary + self.code


def memory(compiled: Compiled) -> ProgramMemory:
    """The memory of a compiled program. Raises ValueError where its compiler does not say."""
    stats = compiled.memory_analysis()
    if stats is None:
        raise ValueError("the compiler does not say how much memory the program needs")
    return ProgramMemory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
    )


# ---- Collectives ----

BETWEEN_SLICES = " between slices"
# How much of an array a chip receives from the others of its group of g, with the algorithms that send least:
# rings. The array is what a chip has after gathering, or before it sums, scatters or exchanges.
_RECEIVED = {
    "all-gather": lambda g: (g - 1) / g,
    "reduce-scatter": lambda g: (g - 1) / g,
    "all-reduce": lambda g: 2 * (g - 1) / g,
    "all-to-all": lambda g: (g - 1) / g,
    "ragged-all-to-all": lambda g: (g - 1) / g,
    "collective-broadcast": lambda g: 1,
    "collective-permute": lambda g: 1,
}


@dataclass(frozen=True)
class Collective:
    """`count` exchanges of one kind and size: each chip receives `received` bytes in each, in groups of
    `group`.

    `kind` is the name in XLA, and ends in `BETWEEN_SLICES` for what goes through the hosts' network from one
    TPU slice to another: there `received` are the bytes of the array, whatever algorithm is used.
    """

    kind: str
    count: int
    received: int
    group: int

    @property
    def total(self) -> int:
        """Bytes that a chip receives in all of them."""
        return self.count * self.received


def collectives(compiled: Compiled, unknown_trips: int = 1) -> list[Collective]:
    """What the chips exchange when the program runs once, most bytes first.

    `unknown_trips`: how often loops turn whose number of turns is found only when the program runs. Of a
    conditional every branch counts. Raises ValueError for a program without text.
    """
    text = compiled.as_text()
    if text is None:
        raise ValueError("the compiler does not show the program")
    return collectives_of(text, unknown_trips)


def collectives_of(hlo: str, unknown_trips: int = 1) -> list[Collective]:
    """As `collectives`, from the text of an optimized HLO module."""
    chips = re.search(r"\bnum_partitions=(\d+)", hlo)
    program = _Program(hlo, int(chips[1]) if chips else 1, unknown_trips)
    executed = program.executed(program.entry)
    found = [Collective(kind, count, received, group) for (kind, received, group), count in executed.items()]
    return sorted(found, key=lambda c: (-c.total, c.kind))


def by_kind(found: Sequence[Collective]) -> dict[str, tuple[int, int]]:
    """For each kind how many there are, and the bytes that a chip receives in them, most bytes first."""
    of_kind = {kind: [c for c in found if c.kind == kind] for kind in dict.fromkeys(c.kind for c in found)}
    sums = {kind: (sum(c.count for c in of), sum(c.total for c in of)) for kind, of in of_kind.items()}
    return dict(sorted(sums.items(), key=lambda item: -item[1][1]))


# ---- Floors ----


@dataclass(frozen=True)
class TimeFloor:
    """Seconds below which a program cannot run, by what the chip's vendor publishes. The three may
    overlap."""

    compute: float
    memory: float
    communication: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.communication)


def time_floor(chip: Chip, flops: float, needed: ProgramMemory, found: Sequence[Collective]) -> TimeFloor:
    """The floor of one run: `flops` of one chip at its peak, its arguments (the weights) read once, and what
    it receives over all its links. What goes between slices is left out: no vendor publishes how fast that
    is.
    """
    received = sum(c.total for c in found if not c.kind.endswith(BETWEEN_SLICES))
    return TimeFloor(flops / chip.flops, needed.arguments / chip.bandwidth, received / chip.interconnect)


# ---- Reading HLO ----

# "%name = type opcode(", where a type may hold "/*index=5*/" and layouts such as "{1,0:T(8,128)(2,1)}".
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%(?P<name>\S+) = (?P<type>.*?) (?P<opcode>[a-z][a-z0-9-]*)\((?P<rest>.*)"
)
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b([a-z]+)(\d+)?[a-z0-9]*\[([\d,]*)\]")

Executed = Counter[tuple[str, int, int]]  # (kind, bytes received, group) -> how often


class _Program:
    """The computations of a module by name, each a list of matched instructions, and what they execute."""

    def __init__(self, hlo: str, chips: int, unknown_trips: int):
        self.chips = chips
        self.unknown_trips = unknown_trips
        self.computations: dict[str, list[re.Match[str]]] = {}
        self.entry = ""
        self._known: dict[str, Executed] = {}
        here: list[re.Match[str]] = []
        for line in hlo.splitlines():
            if start := re.match(r"(ENTRY )?%?(\S+) \(.*\{$", line):
                here = self.computations[start[2]] = []
                self.entry = start[2] if start[1] else self.entry
            elif instruction := _INSTRUCTION.match(line):
                here.append(instruction)

    def executed(self, name: str) -> Executed:
        """The collectives of one run of a computation."""
        if name not in self._known:
            found = self._known[name] = Counter()
            for instruction in self.computations[name]:
                if one := self._collective(name, instruction):
                    found[one] += 1
                for called, times in self._called(instruction):
                    for one, count in self.executed(called).items():
                        found[one] += times * count
        return self._known[name]

    def _called(self, instruction: re.Match[str]) -> list[tuple[str, int]]:
        """The computations that an instruction runs, and how often."""
        opcode = instruction["opcode"]
        rest = instruction["rest"]
        if opcode == "while":
            [(condition, body)] = re.findall(r"\bcondition=%([\w.-]+), body=%([\w.-]+)", rest)
            return [(body, self._trips(rest, condition, body))]
        if opcode in ("async-update", "async-done"):  # they name again what async-start runs
            return []
        branches = _BRANCHES.findall(rest)
        names = _CALLED.findall(rest) + [b.strip(" %") for group in branches for b in group.split(",")]
        return [(name, 1) for name in names]

    def _trips(self, rest: str, condition: str, body: str) -> int:
        """How often a loop turns.

        XLA writes it down for CPUs and GPUs. For TPUs it is the constant below which the condition holds the
        counter, which begins at 0: jax's own loops count by ones, and those in which XLA exchanges the parts
        of a product one by one may do two parts at a turn.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', rest):
            return int(known[1])
        instructions = {i["name"]: i for i in self.computations[condition]}
        root = self.computations[condition][-1]
        if root["opcode"] == "compare" and "direction=LT" in root["rest"]:
            counter, limit = re.findall(r"%([\w.-]+)", root["rest"])[:2]
            if (turns := _constant(instructions[limit])) is not None:
                place = re.search(r"\bindex=(\d+)", instructions[counter]["rest"])
                return -(-turns // self._step(body, int(place[1]))) if place else turns
        return self.unknown_trips

    def _step(self, body: str, place: int) -> int:
        """By how much a turn raises the counter at this place of a loop's state."""
        instructions = {i["name"]: i for i in self.computations[body]}
        root = self.computations[body][-1]
        raised = instructions.get(re.findall(r"%([\w.-]+)", root["rest"])[place])
        if raised is None or raised["opcode"] != "add":
            return 1
        terms = (instructions.get(name) for name in re.findall(r"%([\w.-]+)", raised["rest"])[:2])
        return next((step for term in terms if term and (step := _constant(term))), 1)

    def _collective(self, computation: str, instruction: re.Match[str]) -> tuple[str, int, int] | None:
        """(kind, bytes received, group) of an instruction that starts an exchange with other chips."""
        opcode = instruction["opcode"]
        rest = instruction["rest"]
        arrays = _arrays(instruction["type"])
        if opcode == "recv" and (transfer := re.search(r'_xla_megascale_transfer_type="(\w+)"', rest)):
            slices = re.search(r'_xla_megascale_target="\{([\d,]+)\}', rest)
            kind = transfer[1].lower().replace("_", "-") + BETWEEN_SLICES
            return kind, arrays[0], len(slices[1].split(",")) if slices else 0
        kind = opcode.removesuffix("-start")
        if kind not in _RECEIVED or not self._starts(computation, instruction):
            return None
        g = 2 if kind == "collective-permute" else self._group(rest)
        size = sum(arrays)
        if opcode == "all-gather-start":  # its type holds the operands too
            size = size * g // (g + 1)
        if opcode == "collective-permute-start":  # operand, result, and two words of context
            size = arrays[0]
        if kind == "reduce-scatter":  # its type is a chip's part
            size *= g
        if computation.startswith("all-reduce-scatter"):  # how TPUs write it: a sum of which a part is kept
            kind = "reduce-scatter"
        return (kind, round(size * _RECEIVED[kind](g)), g) if g > 1 else None

    def _starts(self, computation: str, instruction: re.Match[str]) -> bool:
        """False for the later parts of an exchange that a TPU spreads over several products.

        Each of these names it again; one marks it as started.
        """
        if "async_collective_fusion_config" not in instruction["rest"]:
            return True
        start = f'(%{instruction["name"]}), custom_call_target="AsyncCollectiveStart"'
        return any(start in other.string for other in self.computations[computation])

    def _group(self, rest: str) -> int:
        """Chips in a group, from any of XLA's ways to write replica groups."""
        if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
            return len(listed[1].split(","))
        if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
            return int(iota[1])
        if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
            # An axis, or a part of one: 'axis_0':(1)2 are two chips of it.
            axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
            return math.prod(int(part or sizes[axis]) for axis, part in axes)
        return self.chips


def _constant(instruction: re.Match[str]) -> int | None:
    """The value of a constant integer; None for anything else."""
    value = re.match(r"(\d+)\)", instruction["rest"]) if instruction["opcode"] == "constant" else None
    return int(value[1]) if value else None


def _arrays(shape: str) -> list[int]:
    """The bytes of each array of a type such as `(f32[8,4]{1,0}, pred[])`."""
    return [_bytes(*array) for array in _ARRAY.findall(shape)]


def _bytes(letters: str, bits: str, dimensions: str) -> int:
    bits_each = 8 if letters == "pred" else int(bits or 0)  # a token has none
    return math.prod(int(d) for d in dimensions.split(",") if d) * bits_each // 8
