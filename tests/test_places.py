"""Where a thought may stand in a text."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rationalyst_jax.mine.places import PlaceKind, find_places, largest

KINDS: tuple[PlaceKind, ...] = ("line", "sentence", "clause")
# Dense in what matters: white space of many kinds, marks, closing quotes, wide marks.
TEXTS = st.text(st.sampled_from("ab1.,;:!?…—\"')” \n\t\r\u2028\u3000\x1c。，、！」é😀"), max_size=60)


@pytest.mark.parametrize(
    ("text", "kind", "pieces"),
    [
        ("One.\nTwo three.\n\n  Four.\n", "line", ["One.\n", "Two three.\n\n  ", "Four.\n"]),
        ("\n\nOne. Two\nthree", "line", ["\n\nOne. Two\n", "three"]),
        (
            'He left. "Why?" she asked. (No.) 3.5 e.g. x',
            "sentence",
            ["He left. ", '"Why?" ', "she asked. ", "(No.) ", "3.5 e.g. ", "x"],
        ),
        ("No mark\nbut a line; a clause", "sentence", ["No mark\n", "but a line; a clause"]),
        ("At 10:30, as 3,000 — so: x", "clause", ["At 10:30, ", "as 3,000 — ", "so: ", "x"]),
        ("他走了。「好！」她说，没有", "sentence", ["他走了。", "「好！」", "她说，没有"]),
        ("他走了，她说：没有", "clause", ["他走了，", "她说：", "没有"]),
        ("Wait... what", "sentence", ["Wait... ", "what"]),
        ("One word", "clause", ["One word"]),
        (" \n ", "clause", [" \n "]),
        ("", "line", [""]),
    ],
)
def test_a_text_is_cut_before_what_begins(text, kind, pieces):
    bounds = [0, *find_places(text, kind), len(text)]
    assert [text[a:b] for a, b in pairwise(bounds)] == pieces


@given(TEXTS, st.sampled_from(KINDS))
def test_places_ascend_within_the_text_and_white_space_stays_before_them(text, kind):
    places = find_places(text, kind)
    assert places == sorted(set(places))
    for place in places:
        assert text[:place].strip() and not text[place].isspace()
        assert text[:place] + text[place:] == text


@given(TEXTS)
def test_each_kind_has_the_places_of_the_one_before_it(text):
    lines, sentences, clauses = (set(find_places(text, kind)) for kind in KINDS)
    assert lines <= sentences <= clauses


@given(TEXTS)
def test_a_line_begins_where_a_line_break_and_white_space_alone_are_before_a_character(text):
    expected = []
    for place in range(1, len(text)):
        before = text[:place].rstrip()
        if before and not text[place].isspace() and "\n" in text[len(before) : place]:
            expected.append(place)
    assert find_places(text, "line") == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [".", "\n", " ", ". ", "。", '"', ")"])
def test_long_runs_are_read_in_one_pass(piece, kind):
    text = "a" + 200_000 * piece + "b" + 200_000 * piece  # quadratic work would take minutes
    assert len(find_places(text, kind)) <= 400_001


@given(st.lists(st.sampled_from([0.0, 1.0, 2.5, 7.0]), max_size=8), st.integers(1, 9))
def test_the_largest_values_are_taken_in_their_order(values, most):
    taken = largest(values, most)
    assert taken == sorted(set(taken)) and len(taken) == min(most, len(values))
    left = [i for i in range(len(values)) if i not in taken]
    assert all(values[i] > values[j] or (values[i] == values[j] and i < j) for i in taken for j in left)
