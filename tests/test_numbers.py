"""Numbers read exactly, and written so that they read back as themselves."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rationalyst_jax.tasks.numbers import MAX_DIGITS, PARTS, SCALES, digit_count, last_number, number, written

small = st.integers(min_value=0, max_value=10**9)


@given(st.fractions(max_denominator=10**19, min_value=-(10**20), max_value=10**20))
def test_a_written_number_reads_back_as_itself(value: Fraction):
    # A fraction that has more digits than are read is the one exception.
    assert number(written(value)) == (value if digit_count(written(value)) <= MAX_DIGITS else None)


@given(st.builds(Fraction, st.integers(-(10**19), 10**19), st.integers(1, 10**19)))
def test_a_fraction_of_two_long_numbers_reads_back_as_itself(value: Fraction):
    assert number(written(value)) == value


@given(st.integers(-(10**39), 10**39), st.integers(0, 39))
def test_a_long_decimal_reads_back_as_itself(digits: int, places: int):
    value = Fraction(digits, 10**places)
    assert number(written(value)) == value
    assert "/" not in written(value)


@given(st.integers(-(10**9), 10**9), st.integers(0, 6))
def test_the_last_number_of_a_text_is_the_one_written_last(digits: int, places: int):
    value = Fraction(digits, 10**places)
    assert last_number(f"From 3 and 4 follows {written(value)} at last.") == value


@given(small, st.lists(st.sampled_from(list(SCALES)), max_size=2))
def test_scales_multiply(count: int, scales: list[str]):
    value = Fraction(count)
    for scale in scales:
        value *= SCALES[scale]
    assert number(" ".join([str(count), *scales, "grains of sand"])) == value


@given(small, st.sampled_from(list(PARTS)), st.sampled_from((" ", "-")))
def test_a_part_in_words_is_added(count: int, part: str, gap: str):
    assert number(f"{count} and {part.replace(' ', gap)} miles") == count + PARTS[part]


@given(small, small, st.integers(1, 10**9))
def test_a_mixed_number_has_a_proper_fraction(whole: int, numerator: int, denominator: int):
    proper = whole + Fraction(numerator, denominator) if numerator < denominator else None
    for form in ("{} {}/{}", "{} and {}/{} cups", r"{}\frac{{{}}}{{{}}}"):
        assert number(form.format(whole, numerator, denominator)) == proper


@pytest.mark.parametrize("second", ("4", "4.5", "$4", "four", "1/4", "½", "x", "4x", "\\pi", "π", "²", "?4"))
@pytest.mark.parametrize(
    "between", (" ", " and ", " or ", " to ", " + ", "-", " × ", ":", ", ", " eggs ", " eggs, ", " eggs and ")
)
def test_a_second_number_makes_the_first_unreadable(between: str, second: str):
    exact = {" ½": Fraction(7, 2), " 1/4": Fraction(13, 4)}  # mixed numbers
    exact |= {" and ½": Fraction(7, 2), " and 1/4": Fraction(13, 4)}
    assert number(f"3{between}{second}") == exact.get(between + second)
