"""Algebra on answers, by math-verify (Kydlíček 2025) over SymPy. It is slow to import, and sometimes endless:
only the worker processes of `math_grading.py` import this.

math-verify says yes too easily: its numeric test calls 2^-100 and 2^-101 equal. So its yes counts only where
both sides have the same value, to many digits, at several points.
"""

import logging
import re
from collections.abc import Sequence
from random import Random
from typing import Any

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, latex2sympy, normalize_latex
from math_verify import verify
from sympy import Expr, MatrixBase, Rational, sympify
from sympy.core.relational import Relational

from rationalyst_jax.tasks.latex import unmixed
from rationalyst_jax.tasks.math_answers import exactly, read, same

# No unit is stripped here: to math-verify "2s" is two seconds, and so 2.
NORMALIZED = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none")
POINTS = 4  # where two expressions with variables are compared
DIGITS = 30  # to which they must agree
PRECISION = 60  # decimal digits of the evaluation
ZERO = Rational(1, 10**200)  # what sums of that precision that cancel out come to, and less
LETTER = re.compile(r"\\(?:begin|end)\{[a-z]+\}|\\[A-Za-z]+|[A-Za-z]")
IMAGINARY_UNIT = " I "
GREEK = {rf"\{name}" for name in "Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega".split()}

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that nothing limits its time: we do


def compare(pair: tuple[str, str]) -> bool | None:
    """Whether an answer and a gold answer, both plain, mean the same; None where that can't be found out."""
    answer, gold = pair
    try:
        return same(read(answer), read(gold), equal)
    except Exception:  # of SymPy, which raises many kinds, and for want of memory
        return None


def equal(answer: str, gold: str) -> bool | None:
    """Whether two expressions, equations or inequalities in LaTeX are equal; None where two methods disagree.

    What cannot be read as mathematics equals only its own text. Raises MemoryError and RecursionError.
    """
    known = exactly(answer, gold)
    if known is not None:
        return known
    if answer.count("'") != gold.count("'"):
        return False  # the parser drops primes
    texts = [_lowered(unmixed(latex)) for latex in (answer, gold)]
    real = not any(IMAGINARY_UNIT in text for text in texts)
    left, right = (_parsed(text, real) for text in texts)
    if left is None or right is None or not _agree(left, right):
        return False
    return True if verify(right, left, timeout_seconds=None) else None


def _parsed(latex: str, real: bool) -> Any:
    """A SymPy object, or None for what is no mathematics. Raises MemoryError and RecursionError."""
    text = normalize_latex(latex, NORMALIZED)
    try:
        return latex2sympy(text, is_real=real, convert_degrees=True, normalization_config=None)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # of the parser, which raises many kinds
        return None


def _lowered(latex: str) -> str:
    """Capital variables under names of their own, as the parser takes R for r; i as what the parser takes for
    the imaginary unit."""

    def name(found: re.Match[str]) -> str:
        letter = found[0]
        if letter == "i":
            return IMAGINARY_UNIT
        capital = letter in GREEK or (len(letter) == 1 and letter.isupper())
        return f"x_{{{''.join(str(ord(character)) for character in letter)}}}" if capital else letter

    return LETTER.sub(name, latex)


def _agree(left: Any, right: Any) -> bool:
    """Whether two parsed expressions have the same values, or two relations the same solutions."""
    if isinstance(left, MatrixBase) or isinstance(right, MatrixBase) or left.is_Matrix or right.is_Matrix:
        left, right = left.doit(), right.doit()
        if not (isinstance(left, MatrixBase) and isinstance(right, MatrixBase) and left.shape == right.shape):
            return False
        return all(_agree(sympify(a), sympify(b)) for a, b in zip(left.flat(), right.flat(), strict=True))
    if isinstance(left, Relational) and isinstance(right, Relational):
        return _same_relation(left, right)
    if not (isinstance(left, Expr) and isinstance(right, Expr)):
        return False
    return all(
        _close(a, b) for a, b in zip(_values(left, left, right), _values(right, left, right), strict=True)
    )


def _same_relation(left: Any, right: Any) -> bool:
    """Whether the difference of one relation's sides is a constant multiple of the other's."""
    sides = left.lhs - left.rhs, right.lhs - right.rhs
    values = zip(_values(sides[0], *sides), _values(sides[1], *sides), strict=True)
    ratios = [a / b if b else None for a, b in values]
    if None in ratios or not ratios[0] or not all(_close(ratio, ratios[0]) for ratio in ratios):
        return False
    if left.rel_op in ("==", "!="):
        return left.rel_op == right.rel_op
    return left.rel_op == (right.rel_op if ratios[0].is_positive else right.reversed.rel_op)


def _values(expression: Any, *both: Any) -> Sequence[Any]:
    """An expression's values where the variables of both take the same random values, some below zero."""
    names = sorted({symbol.name for one in both for symbol in one.free_symbols})
    random = Random(0)
    values = []
    for _ in range(POINTS if names else 1):
        point = {name: Rational(random.randint(-(10**6), 10**6), 10**5 + 3) for name in names}
        here = expression.subs({symbol: point[symbol.name] for symbol in expression.free_symbols})
        values.append(here.doit().evalf(PRECISION, maxn=4 * PRECISION))
    return values


def _close(a: Any, b: Any) -> bool:
    """Whether two values are numbers that agree to DIGITS digits."""
    if not (a.is_number and b.is_number and a.is_finite is not False and b.is_finite is not False):
        return a == b and bool(a.is_number)
    size = max(abs(a), abs(b))
    return bool(size < ZERO or abs(a - b) <= size * Rational(1, 10**DIGITS))
