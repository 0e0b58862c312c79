"""LaTeX answers in one plain way of writing, and the exact numbers among them.

"\\dfrac12", "\\frac{1}{2}", "$0.5$" and "\\tfrac{1}{2}." should not be four answers. Only what no reader
would take for a difference is rewritten here; whether two answers mean the same `math_answers.py` says.
"""

import re
from fractions import Fraction

from rationalyst_jax.tasks.numbers import MAX_DIGITS, SCALES, digit_count, written
from rationalyst_jax.tasks.solution import braced

MAX_LENGTH = 1000  # characters; a longer answer is a model caught in a loop

# ---- Words ----

# Measures, by the names that stand for them. Two answers with two of these differ; what else is counted
# ("dogs", "ways") tells no two answers apart.
MEASURES = {
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "ms": "ms millisecond milliseconds",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years yr yrs",
    "mg": "mg milligram milligrams",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "ml": "ml mL milliliter milliliters",
    "l": "l L liter liters litre litres",
    "gal": "gal gallon gallons",
    "pt": "pt pint pints",
    "qt": "qt quart quarts",
    "acre": "acre acres",
    "mph": "mph",
    "km/h": "km/h kph kmh",
    "degree": "degree degrees deg",
    "radian": "radian radians rad",
    "percent": "percent percentage pct",
    "dollar": "dollar dollars USD",
    "cent": "cent cents",
    "euro": "euro euros",
    "am": "am a.m. AM A.M.",
    "pm": "pm p.m. PM P.M.",
}
MEASURE_OF = {name: measure for measure, names in MEASURES.items() for name in names.split()}
POWERS = {"square": "^2", "squared": "^2", "sq": "^2", "cubic": "^3", "cubed": "^3", "cu": "^3"}
UNITS = ("unit", "units")
# Outside \text a single letter is a variable, and "in" a word.
_BARE = sorted(
    (name for name in (*MEASURE_OF, *POWERS, *UNITS, *SCALES) if len(name) > 1 and name != "in"), key=len
)
BARE_UNIT = re.compile(
    rf"(?<=[0-9}})])\s*+((?:\s*+(?:{'|'.join(map(re.escape, reversed(_BARE)))})(?![A-Za-z]))++"
    r"(?:\s*+\^\s*+\{?[23]\}?)?+)$"
)
DIGIT_WORDS = dict(
    zip("two three four five six seven eight nine ten eleven twelve".split(), range(2, 13), strict=True)
)

# ---- Patterns ----

DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
SYMBOLS = str.maketrans(
    {
        **dict.fromkeys("−–﹣－", "-"),
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": r"\div ",
        "π": r"\pi ",
        "θ": r"\theta ",
        "∞": r"\infty ",
        "°": r"^\circ ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "±": r"\pm ",
        "∪": r"\cup ",
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "ℝ": r"\mathbb{R}",
        "²": "^2",
        "³": "^3",
        "\u00a0": " ",
        "\u202f": " ",
    }
)
END = "(?![A-Za-z])"  # of a command's name
BLANK = r"(?:\\[,;: ]|~| )++"
# Ways of writing that have a plainer one, applied in this order. In a matrix "\\\\ 5" is no "\\ ": the first
# alternative of a pattern keeps it.
PLAINER = (
    (re.compile(r"(?<=[0-9]),\s*+\\!\s*+(?=[0-9]{3})"), ""),
    (re.compile(r"(?<=[0-9])\{,\}(?:\\!)?+\s*+(?=[0-9]{3})"), ""),
    (re.compile(r"\{,\}"), ","),
    (
        re.compile(rf"(?<![0-9_^.])[0-9]{{1,3}}(?:{BLANK}[0-9]{{3}})++(?![0-9/])"),
        lambda found: re.sub(BLANK, "", found[0]),
    ),
    (re.compile(rf"(\\\\)|\\[,;:> ]|\\q?quad{END}|~"), lambda found: found[1] or " "),
    (re.compile(r"(\\\\)|\\!"), lambda found: found[1] or ""),
    (re.compile(rf"\\(?:left|right)\s*+\.|\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle){END}"), ""),
    (re.compile(rf"\\[dtc]frac{END}"), r"\\frac"),
    (
        re.compile(r"\\(?:mbox|hbox|textnormal|textrm|textbf|textit|textsf|mathrm|mathbf|mathit|bm)\s*+\{"),
        r"\\text{",
    ),
    (re.compile(r"\\text\{\s*+([^{}A-Za-z\\]*+)\}"), r"\1"),
    (
        re.compile(
            r"(?:,\s*+)?+\\text\s*+\{[,\s]*+(?:and|or)\s*+\}|(?<=[0-9})$A-Z])(?:\s*+,)?+\s++(?:and|or)\s++"
        ),
        ", ",
    ),
    (re.compile(rf"\^\s*+(?:\\circ{END}|\{{\s*+\\circ\s*+\}})|\\degree{END}"), r"^\\circ "),
    (
        re.compile(r"(?<=[0-9])\s*+(?:\\text\{)?+\s*+([ap])\.?m\.?\s*+\}?$", re.I),
        lambda found: rf"\text{{{found[1].lower()}m}}",
    ),
    (re.compile(r"\\?%"), r"\\%"),
    (re.compile(r"(?<!\\)\$"), ""),
    (re.compile(rf"\\(?:leq?(?:slant)?){END}"), r"\\le "),
    (re.compile(rf"\\(?:geq?(?:slant)?){END}"), r"\\ge "),
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(rf"\\lt{END}"), "<"),
    (re.compile(rf"\\gt{END}"), ">"),
    (re.compile(rf"\\(?:varnothing){END}"), r"\\emptyset "),
    (re.compile(rf"\+\s*+\\infty{END}|\\infin{END}"), r"\\infty "),
    (re.compile(rf"\\lbrace{END}"), r"\\{"),
    (re.compile(rf"\\rbrace{END}"), r"\\}"),
    (re.compile(r"\\begin\{bmatrix\}"), r"\\begin{pmatrix}"),
    (re.compile(r"\\end\{bmatrix\}"), r"\\end{pmatrix}"),
    (re.compile(r"(?<![\\A-Za-z{])(sin|cos|tan|cot|sec|csc|log|ln|pi|sqrt|infty)(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"\\sqrt\s*+\(([^()]*+)\)"), r"\\sqrt{\1}"),
    (re.compile(rf"\\sqrt\s*+(\\pi{END}|[0-9A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"\\sqrt\s++\{"), r"\\sqrt{"),
    (
        re.compile(rf"_\s*+\{{?\s*+(?:\\text\{{)?\s*+({'|'.join(DIGIT_WORDS)})\s*+\}}*"),
        lambda found: f"_{DIGIT_WORDS[found[1]]}",
    ),
    (re.compile(r"_\s*+\{\s*+([0-9A-Za-z])\s*+\}"), r"_\1"),
    (re.compile(r"\^\s*+\{\s*+([0-9A-Za-z])\s*+\}"), r"^\1"),
)
GROUPED = re.compile(r"(?<![0-9,.])[0-9]{1,3}(?:,[0-9]{3})++(?!,?[0-9])")
TOKEN = re.compile(r"\\text\{[^{}]*+\}|\\[A-Za-z]++|\\.|\s++|.", re.DOTALL)
WORDS = re.compile(r"[A-Z]{2,}+|[A-Za-z]{4,}+|(?=.*[A-Za-z]{3})[A-Za-z]++(?:[ -][A-Za-z]++)++")

DECIMAL = r"(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)"
EXACT = re.compile(
    rf"""(?P<sign>[-+]?)
    (?: (?P<whole>[0-9]++)(?:\ ?(?=\\frac)|\ (?=[0-9]++/)))?+
    (?: (?P<decimal>{DECIMAL})
        (?:(?:\\times|\\cdot)\ ?10\^(?:\{{(?P<power>[-+]?[0-9]{{1,2}})\}}|(?P<digit>[0-9])))?
      | (?P<head>[0-9]*+)\.(?P<fixed>[0-9]*+)\\overline\{{(?P<cycle>[0-9]++)\}}
      | \\frac\{{(?P<over>[-+]?{DECIMAL})\}}\{{(?P<under>[-+]?{DECIMAL})\}}
      | (?P<left>{DECIMAL})/(?P<right>{DECIMAL})
    )""",
    re.VERBOSE,
)
MIXED = re.compile(r"(?<![0-9.^_}A-Za-z\]])([0-9]++) ?\\frac\{([0-9]++)\}\{([0-9]++)\}")


def plain(latex: str) -> str:
    """An answer in its plain way of writing; an exact number as `numbers.written` writes it.

    `plain(plain(x)) == plain(x)`. Digits are grouped by ",", ",\\!", "{,}", "\\," and blanks; in brackets a
    bare comma separates. A list has ", " between its parts.
    """
    plainer = _plainer(latex)
    while len(plainer) < len(latex):  # an unclosed brace, say, that hid a comma at the end
        latex, plainer = plainer, _plainer(plainer)
    return plainer


def _plainer(latex: str) -> str:
    latex = _unwrapped(latex.translate(SYMBOLS))
    for pattern, plainer in PLAINER:
        latex = pattern.sub(plainer, latex)
    latex = _fractions_braced(latex).strip()
    if WORDS.fullmatch(latex):
        latex = rf"\text{{{latex}}}"
    latex = BARE_UNIT.sub(lambda found: rf"\text{{{found[1].strip()}}}", latex)
    if not re.search(r"[(\[]|\\\{", latex):
        latex = GROUPED.sub(lambda found: found[0].replace(",", ""), latex)
    latex = _spaced(latex)
    value = exact(latex)
    return latex if value is None else written(value)


def exact(latex: str) -> Fraction | None:
    """The number that a plain answer is, or None: decimals (0.\\overline{3} too), fractions, mixed numbers
    and powers of ten."""
    found = EXACT.fullmatch(latex)
    if found is None or digit_count(latex) > 2 * MAX_DIGITS:
        return None
    if found["cycle"]:
        scale = 10 ** len(found["fixed"])
        size = Fraction(int("0" + found["head"] + found["fixed"]), scale)
        size += Fraction(int(found["cycle"]), scale * (10 ** len(found["cycle"]) - 1))
    elif found["decimal"]:
        size = Fraction(found["decimal"]) * Fraction(10) ** int(found["power"] or found["digit"] or 0)
    else:
        under = Fraction(found["under"] or found["right"])
        if under == 0:
            return None
        size = Fraction(found["over"] or found["left"]) / under
    if found["whole"]:
        if not (0 <= size < 1 and (found["over"] or found["left"])):
            return None
        size += int(found["whole"])
    return -size if found["sign"] == "-" else size


def unmixed(latex: str) -> str:
    """Mixed numbers in an expression as sums, decimals as fractions: nothing is a product or a float that was
    not meant as one."""

    def sum_of(found: re.Match[str]) -> str:
        whole, over, under = found.groups()
        return rf"({whole}+\frac{{{over}}}{{{under}}})" if int(over) < int(under) else found[0]

    def fraction_of(found: re.Match[str]) -> str:
        value = Fraction(found[0])
        return rf"\frac{{{value.numerator}}}{{{value.denominator}}}" if value.denominator > 1 else str(value)

    return re.sub(r"[0-9]*+\.[0-9]++", fraction_of, MIXED.sub(sum_of, latex))


def measure(unit: str) -> str:
    """What a unit measures, by one name ("square inches", "in^2": "in^2"); "" for a thing that is counted."""
    words, _, power = unit.partition("^")
    words = re.sub(r"\bper\b", "/", words).split()
    powers = [POWERS[word] for word in words if word in POWERS]
    names = [word for word in words if word not in POWERS and word not in UNITS]
    power = f"^{power.strip('{} ')}" if power else "".join(powers)
    if not names:
        return power and f"unit{power}"
    if not all(name in MEASURE_OF or name == "/" or name.rstrip(".") in MEASURE_OF for name in names):
        return ""
    return "".join(MEASURE_OF.get(name, MEASURE_OF.get(name.rstrip("."), name)) for name in names) + power


def scale(unit: str) -> int:
    """What the words of a unit multiply by: 1,000,000 of "million dollars"."""
    size = 1
    for word in unit.split():
        size *= SCALES.get(word.lower(), 1)
    return size


def _unwrapped(latex: str) -> str:
    """Without the signs that open and close math around it, and without the stop after it."""
    before = None
    while before != latex:
        before = latex
        latex = latex.strip().rstrip(".,;").strip()
        if latex.endswith("\\") and not latex.endswith(r"\\"):  # what is left of "\\,"
            latex = latex[:-1]
        for opening, closing in DELIMITERS:
            inside = latex[len(opening) : len(latex) - len(closing)]
            long = len(latex) > len(opening) + len(closing)
            if long and latex.startswith(opening) and latex.endswith(closing) and opening not in inside:
                latex = inside.removesuffix("\\") if closing == "$" and inside.endswith("\\") else inside
                break
    return latex


def _fractions_braced(latex: str) -> str:
    """Every \\frac with braces around both of its arguments; one without two arguments stays as it is."""
    before, command, rest = latex.partition(r"\frac")
    if not command:
        return latex
    over, after = _argument(rest)
    under, after = _argument(after)
    if over and under:
        command += f"{{{_fractions_braced(over)}}}{{{_fractions_braced(under)}}}"
        rest = after
    return before + command + _fractions_braced(rest)


def _argument(text: str) -> tuple[str, str]:
    """The argument of a command that a text opens with ("": there is none), and what follows it."""
    text = text.lstrip()
    if text.startswith("{"):
        inside = braced(text[1:])
        return inside, text[len(inside) + 2 :]
    found = re.match(r"[0-9A-Za-z]|\\(?!frac)[A-Za-z]+(?:\{[^{}]*\})?|", text)
    assert found is not None
    return found[0], text[found.end() :]


def _spaced(latex: str) -> str:
    """Blanks only where they part a command from a letter or a digit from a digit, and after a comma."""
    pieces: list[str] = []
    blank = False
    for token in TOKEN.findall(latex):
        if token.isspace():
            blank = True
            continue
        last = pieces[-1] if pieces else ""
        named = last.startswith("\\") and last[-1].isalpha() and token[0].isalpha()
        if named or last in (",", ";") or (blank and last[-1:].isdigit() and token[0].isdigit()):
            pieces.append(" ")
        if token.startswith(r"\text{"):
            token = rf"\text{{{' '.join(token[6:-1].split())}}}"
        pieces.append(token)
        blank = False
    return "".join(pieces)
