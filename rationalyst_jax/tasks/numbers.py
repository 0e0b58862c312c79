"""Numbers as models write them, read exactly: "$1,234.50", "2 1/2 cups", "1.5 million", "9 * 2 = 18".

A number is an exact fraction: "3.5" is not 3, "0.1" is one tenth, and no float rounds an answer into a right
one. The patterns list what may stand around a number. Where anything else does, the number might not be the
one that is meant ("3 hours 20 minutes", "5²", "about 18"), so there is none: nothing is guessed.

Every quantifier is bounded or possessive (`*+`), so reading takes time linear in the text.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Iterable
from decimal import Decimal, localcontext
from fractions import Fraction

MAX_DIGITS = 40  # a longer number is a model caught in a loop

# ---- Words ----

SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Only directly after an amount of money: elsewhere they are kelvins, metres and names.
MONEY_SCALES = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
PARTS = {
    "a half": Fraction(1, 2),
    "one half": Fraction(1, 2),
    "a third": Fraction(1, 3),
    "one third": Fraction(1, 3),
    "two thirds": Fraction(2, 3),
    "a quarter": Fraction(1, 4),
    "one quarter": Fraction(1, 4),
    "three quarters": Fraction(3, 4),
}
CARDINALS = """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"""
ORDINALS = "third fourth fifth sixth seventh eighth ninth tenth hundredth thousandth"
# After a number these change it ("3 dozen", "5 squared"), or say that it is one of several ("5 or more").
CHANGING = """hundreds thousands millions billions trillions dozen dozens score gross half halves quarter
    thirds fourths fifths sixths sevenths eighths ninths tenths hundredths thousandths double twice triple
    thrice plus minus divided multiplied squared cubed power factorial negative or st nd rd th"""


def any_of(words: str | Iterable[str]) -> str:
    """A pattern that matches any of the words, in either case; a space also stands for a hyphen."""
    listed = words.split() if isinstance(words, str) else words
    longest_first = sorted(listed, key=len, reverse=True)
    return f"(?i:{'|'.join(longest_first)})".replace(" ", r"[\s-]")


# ---- Patterns ----

CURRENCY = "[$€£¥]"
DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])(?:\.[0-9]++)?+|[0-9]++(?:\.[0-9]++)?+|\.[0-9]++)"
LETTER = "[A-Za-zÀ-ÖØ-öø-ÿ]"
OPERATION = rf"(?:[-+*/×÷^]|(?i:x|plus|minus|times|divided\s++by|multiplied\s++by)(?!{LETTER}))"

NUMBER = rf"""
    [\s:*_`"'“‘(\[{{$€£¥]*+                                                  # markup and currency
    (?P<sign>[-+]|(?i:minus|negative)\s++)?+ {CURRENCY}*+
    (?P<money>(?<={CURRENCY}))?+
    (?:(?P<whole>[0-9]++)(?:\s++and)?+\s++(?=[0-9]++\s*+/\s*+[0-9]))?        # 2 1/2, 2 and 1/2
    (?P<digits>{DIGITS})
    (?:\s*+/\s*+(?P<denominator>[0-9]++))?+
    (?:\s++and\s++(?P<part>{any_of(PARTS)})(?!{LETTER}))?+                   # 3 and a half
    (?P<scales>(?:[\s-]*+{any_of(SCALES)}(?!{LETTER})){{0,3}}+)              # 5 hundred thousand
    (?(money)(?:\s?+(?P<letter>[KMBTkmbt])(?![A-Za-z0-9$]))?+)               # $1.2M
"""

# What may follow a number up to the end of its clause. A second number stands only where it cannot be part of
# the first: in "3 of the 5 boxes", "$18 for 2 tickets", "40 miles in 2 hours", in brackets, after "because".
TAIL = rf"""
    (?: \s++
      | [*_`"'”’)\]}}$€£¥%°✅✓]                                               # what closes markup; units
      | ,(?=\s|$)
      | [-—](?=\s|{LETTER})
      | /(?=\s*+{LETTER})
      | (?<=\s)\((?!\s*+(?:or\b|{any_of(SCALES)}))[^()]*+\)                  # 5 (that is 2 + 3)
      | (?i:of\s++(?:all\s++)?+(?:the|those|these|his|her|its|their)\s++)(?:[0-9]++|{any_of(CARDINALS)})\b
      | (?i:for|after|(?<![0-9]\s)(?:in|over|within|during))\s++
        {CURRENCY}?+(?:{DIGITS}|{any_of(CARDINALS)}\b)(?=\s++{LETTER})
      | (?i:the|each|every)\s++{any_of(ORDINALS)}\b
      | (?!{any_of(" ".join((CARDINALS, ORDINALS, CHANGING, *SCALES)))}(?!{LETTER}))
        (?!(?i:because|since|which|given|so|not)\b)
        (?: {LETTER}(?:['’.-]?{LETTER})++ | [aghlmstACFIL](?!{LETTER}))      # a word; of letters, only units
        (?:[²³]|\^\{{?[23]\}}?)?+ (?![0-9^²³])                               # cm², cm^2
    )*+
    (?: (?i:because|since|which|given|so|not)\b .*+ )?+
"""
CLAUSE = re.compile(NUMBER + TAIL, re.VERBOSE | re.DOTALL)

# What may stand left of "=" for its right side to be the answer: a name ("x", "total cost"), a calculation.
OPERAND = rf"""
    [\s$*_(\[{{]*+ [-+]?+ {CURRENCY}?+ {DIGITS} (?:\s++|(?!{OPERATION}){LETTER}++|[%)\]}}])*+
"""
CALCULATION = re.compile(
    rf"[\s$*_(]*+(?:(?i:total\s++)?+{LETTER}++[\s*_]*+|{OPERAND}(?:{OPERATION}{OPERAND})++)", re.VERBOSE
)

LITERAL = re.compile(rf"(?P<sign>(?<![\w)])-)?+{CURRENCY}?+(?P<digits>{DIGITS})")

SENTENCE_END = re.compile(r"[.!?;][*_`\"'”’)$]*+(?=\s|$)")
ANNOTATION = re.compile(r"<<[^<>]*+>>")  # of GSM8K's calculator, as in "48/2 = <<48/2=24>>24"
# Ways of writing that have a plainer one, applied in this order.
PLAINER = (
    (ANNOTATION, ""),
    (re.compile(r"(?<=[0-9])(?=\\[dt]?frac)"), " "),  # a mixed number
    (re.compile(r"\\[dt]?frac\s*+\{([^{}]*+)\}\s*+\{([^{}]*+)\}"), r"\1/\2"),
    (re.compile(r"\\[dt]?frac\s*+([0-9])\s*+([0-9])"), r"\1/\2"),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*+\{([^{}]*+)\}"), r"\1"),
    (re.compile(r"\^\s*+(?:\\circ\b|\{\\circ\})"), "°"),
    (re.compile(r"\\(?:times|cdot)\b"), "*"),
    (re.compile(r"\\div\b"), "÷"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"\\[,!;: ()\[\]]"), ""),  # spaces and math brackets
    (re.compile(r"\b(ft|in|lbs?|oz|yds?|hrs?|mins?|secs?)\.(?=\s++[0-9])"), r"\1"),  # no end of a sentence
    (re.compile("[−–﹣－]"), "-"),  # minus sign, en dash, small and full-width hyphen
    (re.compile("[¼-¾⅐-⅞]"), lambda found: " " + unicodedata.normalize("NFKC", found[0]).replace("⁄", "/")),
)


# ---- Reading and writing ----


def number(clause: str) -> Fraction | None:
    """The one number a clause states, between markup or currency and its unit, or None.

    A percentage is its number ("50%" is 50, as in GSM8K's gold answers). An equation is its right side, where
    all other sides are names, calculations or the same number. What follows the first sentence is not read.
    """
    for pattern, plainer in PLAINER:
        clause = pattern.sub(plainer, clause)
    clause = SENTENCE_END.split(clause, maxsplit=1)[0]
    value = _stated(clause)
    if value is not None or "=" not in clause:
        return value
    *sides, last = clause.split("=")
    value = _stated(last)
    return value if all(CALCULATION.fullmatch(side) or _stated(side) == value for side in sides) else None


def _stated(clause: str) -> Fraction | None:
    found = CLAUSE.fullmatch(clause)
    if found is None or digit_count(found[0][: found.end("digits")]) > MAX_DIGITS:
        return None
    size = Fraction(found["digits"].replace(",", ""))
    if found["denominator"]:
        if len(found["denominator"]) > MAX_DIGITS or int(found["denominator"]) == 0:
            return None
        size /= int(found["denominator"])
    if found["whole"] or found["part"]:
        # A mixed number is a whole one and a proper fraction.
        whole, part = (int(found["whole"]), size) if found["whole"] else (size, PARTS[_words(found["part"])])
        if part >= 1 or whole.denominator != 1 or (found["whole"] and found["part"]):
            return None
        size = whole + part
    for scale in re.findall(r"[a-z]+", found["scales"].lower()):
        size *= SCALES[scale]
    if found["letter"]:
        size *= MONEY_SCALES[found["letter"].lower()]
    value = -size if found["sign"] and found["sign"] != "+" else size
    return value if digit_count(written(value)) <= MAX_DIGITS else None  # so what is written can be read


def last_number(text: str) -> Fraction | None:
    """The last number of a text, whatever stands around it: digits, with grouping commas and a point, and a
    minus sign that is no operator. None where there is none, or one of more than MAX_DIGITS digits."""
    found = deque(LITERAL.finditer(text), maxlen=1)
    if not found or digit_count(found[0][0]) > MAX_DIGITS:
        return None
    [last] = found
    size = Fraction(last["digits"].replace(",", ""))
    return -size if last["sign"] else size


def written(value: Fraction) -> str:
    """A number's one way of being written, so that equal answers are equal texts: "-3", "0.5", "1/3".

    A decimal where that has no more than MAX_DIGITS digits, else a fraction.
    """
    if 10**MAX_DIGITS % value.denominator:
        return str(value)
    with localcontext(prec=len(str(value.numerator)) + MAX_DIGITS):  # enough for every digit
        exact = format(Decimal(value.numerator) / value.denominator, "f")
    if "." in exact:
        exact = exact.rstrip("0").rstrip(".")
    return exact if digit_count(exact) <= MAX_DIGITS else str(value)


def digit_count(text: str) -> int:
    return sum(map(str.isdigit, text))


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z]+", text.lower()))
