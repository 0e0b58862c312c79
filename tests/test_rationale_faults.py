"""Faults of rationales: own cases, each with its verdict."""

import pytest

from rationalyst_jax.evaluate.rationale_faults import (
    FAULTS,
    leaked,
    measure_faults,
    numbers,
    results,
    words,
)

QUESTION = (
    "Question: A baker fills 4 trays with 12 rolls each and sells 30 rolls. How many are left?\nAnswer: "
)
STEP = "There are 4 * 12 = <<4*12=48>>48 rolls on the trays. So 48 - 30 = 18 rolls are left.\n#### 18"
OPTIONS = (
    "Question: Where do bees keep their honey? Options: A. in a hive B. under water C. in a hive of glass"
    " D. on the moon\nAnswer: "
)

# (preceding, rationale, following) and exactly the faults that it has.
CASES = {
    "points to what to do": (QUESTION, "all trays hold the same, so multiply", STEP, set()),
    "copies the next words": (
        "The pond froze. ",
        "the ducks walked home over the ice",
        "So the ducks walked home over thin ice.",
        {"copies"},
    ),
    "four words in a row are no copy": (QUESTION, "multiply to count the rolls on the trays", STEP, set()),
    "words that the question has are no copy": (
        QUESTION,
        "count: sells 30 rolls, how many are left",
        "He sells 30 rolls, how many are left then? It is 18.",
        {"repeats"},
    ),
    "states the result of a calculation": (
        QUESTION,
        "the trays hold 48 in all",
        STEP,
        {"leaks", "new_number"},
    ),
    "states the final answer alone": (QUESTION, "it must be 18.0", STEP, {"leaks", "new_number"}),
    "states a number that is only calculated with": (
        "The hens laid for a week. ",
        "a week has 7 days",
        "7 days make 7 * x eggs.",
        {"new_number"},
    ),
    "states a number that was there already": (QUESTION, "divide by 12", "30 / 12 = 2.5", set()),
    "says nothing": (QUESTION, "Let's think about this step by step.", STEP, {"vacuous"}),
    "names one thing and says nothing of it": (QUESTION, "let us look at the rolls", STEP, {"vacuous"}),
    "names two things": (QUESTION, "let us look at the rolls and trays", STEP, set()),
    "a number is something": (QUESTION, "use the 12", STEP, set()),
    "repeats what was said": (
        QUESTION,
        "the baker fills 4 trays with 12 rolls each",
        STEP,
        {"repeats"},
    ),
    "repeats a little of it": (
        QUESTION,
        "since he fills 4 trays with equally many, their product is the stock before any sale",
        STEP,
        set(),
    ),
    "names the right option by its letter": (OPTIONS, "choose option D here", "The answer is D.", {"leaks"}),
    "names another option": (OPTIONS, "choose option A here", "The answer is D.", set()),
    "names the right option by its text": (
        OPTIONS,
        "bees are found on the moon",
        "The answer is (D).",
        {"leaks"},
    ),
    "weighs two options": (OPTIONS, "is it on the moon or under water", "The answer is D.", set()),
    "names the longer of two options that begin alike": (
        OPTIONS,
        "honey must be seen, so they like it in a hive of glass",
        "The answer is C.",
        {"leaks"},
    ),
    "names the shorter one where the longer is right": (
        OPTIONS,
        "they like it in a hive",
        "The answer is C.",
        set(),
    ),
    "states an answer in words": ("Is ice cold? ", "surely yes", "The answer is yes.", {"leaks"}),
    "states an answer that was given before": (
        "The answer is yes. ",
        "surely yes",
        "Again: the answer is yes.",
        set(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rationale_has_exactly_these_faults(name):
    preceding, rationale, following, expected = CASES[name]
    assert set(measure_faults(preceding, rationale, following).found) == expected


def test_every_fault_has_a_case():
    assert set.union(*(expected for *_, expected in CASES.values())) == set(FAULTS)


def test_measures_count_words():
    measured = measure_faults(
        "the red hen ate the corn", "Why the red hen ate: HUNGER", "It was hunger's fault"
    )
    assert measured.repeated == pytest.approx(4 / 6)
    assert measured.own_words == 5  # all but "the"
    assert measured.copied == 0  # "hunger's" is another word
    assert measure_faults("a", "b c d", "x b c y b c d").copied == 3
    assert measure_faults("b c d", "b c d e", "b c d e").copied == 4


def test_words_have_no_case_and_no_punctuation():
    assert words("Tom’s cost: $1,234.50 (a WEEK)!") == ["tom's", "cost", "1,234.50", "a", "week"]


def test_equal_numbers_are_one_number():
    assert numbers("1,000 or 1000.0, .5 and 0.50, v2 is a name") == {"1000", "0.5"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5 + 6 = 11 apples", {"11"}),
        ("x = 3 + 4 = 7", {"7"}),  # 3 is only calculated with
        ("it is $<<12.5*2=25>>25 now", {"25"}),
        ("= $95 + $196 = $291", {"291"}),
        ("= 3 x 4 = 12", {"12"}),
        ("78 – 30 = 48", {"48"}),
        ("The answer is: 1,500 dollars", {"1500"}),
        ("#### -7", {"7"}),
        ("there are 60 minutes", set()),
    ],
)
def test_results_are_what_a_text_works_out(text, expected):
    assert results(text) == expected


def test_a_result_that_was_there_already_is_no_leak():
    assert leaked("He has 18. ", "it is 18", "10 + 8 = 18") == ()
    assert leaked("He has 17. ", "it is 18", "10 + 8 = 18") == ("18",)


@pytest.mark.parametrize("text", ["", " ", "…", "1" * 100, "«=»", "((((A", "= " * 50])
def test_strange_texts_are_measured_too(text):
    for three in ((text, "a b", "c"), ("a", text, "c"), ("a", "b", text), (text,) * 3):
        assert set(measure_faults(*three).found) <= set(FAULTS)


def test_long_texts_are_measured_in_time_linear_in_them():
    long = "= 12 the hen (A) option B. " * 4000
    measured = measure_faults(long, "the hen = 12 of them", long)
    assert measured.leaked == () and measured.copied == 0


def test_real_rationales_of_the_authors_give_their_faults(shared):
    from rationalyst_jax.mine.triple_files import read_triple_files

    triples = read_triple_files(shared / "rationalyst" / "rationales.jsonl")
    assert len(triples) == 500
    # The first line of a document is its question; 193 questions, each one a document.
    first_lines = {triple.document_id: triple.preceding.split("\n")[0] for triple in triples}
    assert len(first_lines) == len(set(first_lines.values())) == 193
    found = [measure_faults(t.preceding, t.rationale, t.following).found for t in triples]
    counts = {fault: sum(fault in names for names in found) for fault in FAULTS}
    assert counts == {"copies": 46, "leaks": 0, "new_number": 14, "vacuous": 0, "repeats": 19}
