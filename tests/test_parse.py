"""Annotated copies are read back against the document, whatever a model made of them."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rationalyst_jax.mine.documents import Annotation, Document, read_annotations
from rationalyst_jax.mine.parse import FAITHFUL, USABLE, parse
from rationalyst_jax.mine.triples import cut_triples, extract

DOCUMENT = "Ann has 3 red pens and buys 4.\nSo she has 3 + 4 = 7 pens.\nShe gives 2.\nThat leaves 7 - 2 = 5."
SO, SHE, THAT = (DOCUMENT.index(word) for word in ("So she", "She gives", "That leaves"))


def annotated(*inserted: tuple[int, str]) -> str:
    """The document with texts inserted before these characters."""
    output = DOCUMENT
    for start, text in sorted(inserted, reverse=True):
        output = output[:start] + text + output[start:]
    return output


def outcomes(output: str) -> list[str]:
    return [rationale.outcome for rationale in parse(DOCUMENT, output).rationales]


# Words of documents and rationales share no letter, so that no rationale is text of its document.
word = st.text("abcxyzäö0123.,=+-$’字", min_size=1, max_size=6)
gap = st.sampled_from([" ", "\n", "  ", "\n\n", " \n", "\t", "\u00a0"])
rationale_text = st.lists(st.text("RSTUVW'", min_size=1, max_size=5), min_size=1, max_size=4).map(" ".join)


@st.composite
def documents_with_rationales(draw):
    """(document, [(start, rationale)], faithful output with white space changed at will)."""
    words = draw(st.lists(word, min_size=2, max_size=25))
    inserted = draw(st.dictionaries(st.integers(1, len(words) - 1), rationale_text, max_size=6))
    document = words[0]
    output = words[0]
    placed = []
    for i, following in enumerate(words[1:], 1):
        document += draw(gap)
        output += draw(gap)
        if i in inserted:
            placed.append((len(document), inserted[i]))
            before, after = draw(st.sampled_from([("", ""), (" ", " "), ("\n", "\n"), ("", "\n")]))
            output += f"{before}<BOT>{before}{inserted[i]}{after}<EOT>{after}"
        document += following
        output += following
    return document, placed, output


@given(documents_with_rationales())
def test_inserted_rationales_are_found_where_they_were_put(case):
    document, placed, output = case
    parsed = parse(document, output)
    assert parsed.outcome == ("exact" if placed else "unannotated")
    assert parsed.similarity == 1
    assert list(parsed.placed) == placed


@given(documents_with_rationales(), st.data())
@settings(max_examples=300)
def test_a_mangled_output_never_raises_and_never_yields_text_that_is_not_the_documents(case, data):
    document, _, output = case
    noise = st.sampled_from(
        ["<BOT>", "<EOT>", "[bot]", "</BOT>", "< EOT/>", "\n", "", "a", "R", "```", "Sure:\n"]
    )
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(output)))
        output = output[:at] + data.draw(noise) + output[at + data.draw(st.integers(0, 4)) :]
    for min_similarity in (0.9, 0.0):  # 0: the places must hold up in bad copies, too
        parsed = parse(document, output, min_similarity)
        assert all((r.start is not None) == (r.outcome in USABLE) for r in parsed.rationales)
        end = None
        for triple in cut_triples(Document("d", document, "s"), parsed):
            assert document.startswith(triple.preceding + triple.following)
            assert triple.preceding[-1].isspace() and triple.following and not triple.following[0].isspace()
            assert triple.rationale.strip() == triple.rationale != ""
            assert end is None or triple.start == end
            end = triple.end
        assert end in (None, len(document))


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_can_be_parsed(document, output):
    parse(document, output)


@pytest.mark.parametrize(
    "rationale",
    [
        "<bot>add them<eot>",
        "< BOT >add them< EOT >",
        "[BOT]add them[EOT]",
        "<BOT>add them</BOT>",
        "<BOT/>add them<EOT/>",
        "<BOT>add them</EOT>",
        "<|BOT|>add them<|EOT|>",
        "&lt;BOT&gt;add them&lt;EOT&gt;",
        "<BOT>add them<BOT/>",
    ],
)
def test_altered_markers_are_understood_and_named(rationale):
    parsed = parse(DOCUMENT, annotated((SO, rationale)))
    assert parsed.placed == ((SO, "add them"),)
    assert [r.outcome for r in parsed.rationales] == ["altered"]


@pytest.mark.parametrize(
    "text", ["\n<BOT>add them<EOT>\n", "<BOT>\nadd them\n<EOT>", " <BOT> add them <EOT> "]
)
def test_markers_may_stand_around_line_breaks(text):
    assert parse(DOCUMENT, annotated((SO, text))).placed == ((SO, "add them"),)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (annotated((SO, "<BOT>add them\n"), (THAT, "<BOT>take off<EOT>")), ["line_end", "clean"]),
        (annotated((SO, "<BOT>\n  add them\n")), ["line_end"]),
        (annotated((SO, "<BOT>add them ")).replace("\n", " "), ["unclosed"]),
        (annotated((SO, "<BOT>")), ["unclosed"]),  # the line is the document's, not a rationale
        (annotated((SO, "<BOT>add<BOT>")), ["unclosed", "unclosed"]),
        (annotated((SO, "add<EOT>")), ["stray"]),
        (annotated((SO, "<BOT>x<EOT><EOT>")), ["clean", "stray"]),
        (annotated((SO, "<BOT>add <BOT>both<EOT> of them<EOT>")), ["nested"]),
        (annotated((SO, "<BOT> <EOT>")), ["empty"]),
        (annotated((SHE, "<BOT>So she has 3 + 4 = 7<EOT>")), ["copied"]),
        (annotated((SO + 4, "<BOT>add them<EOT>")), ["inside_word"]),
        (annotated((0, "<BOT>add them<EOT>")), ["no_preceding"]),
        (DOCUMENT + " <BOT>all done<EOT>", ["no_following"]),
        (annotated((SO, "<BOT>add<EOT> <BOT>both<EOT>")), ["no_following", "clean"]),
        (annotated((SO, "<BOT>x<EOT>"), (THAT, "<BOT>off")), ["clean", "unclosed"]),
    ],
)
def test_each_malformed_rationale_has_its_name(output, expected):
    assert outcomes(output) == expected
    assert parse(DOCUMENT, output).outcome in FAITHFUL


def test_a_rationale_that_swallowed_the_documents_next_words_is_dropped():
    output = annotated((SO, "<BOT>add them<EOT>"), (THAT, "<BOT>take 2 off<EOT>")).replace("That leaves ", "")
    parsed = parse(DOCUMENT, output, min_similarity=0.8)
    assert [r.outcome for r in parsed.rationales] == ["clean", "at_change"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (DOCUMENT, "unannotated"),
        (annotated((SO, "<BOT>add them<EOT>")), "exact"),
        (annotated((SO, "<BOT>add them<EOT>")).replace("red", "rd"), "near"),
        ("Here is the text:\n" + annotated((SO, "<BOT>add them<EOT>")), "trimmed"),
        ("```text\n" + annotated((SO, "<BOT>add them<EOT>")) + "\n```\nI hope this is of use!", "trimmed"),
        (annotated((SO, "<BOT>add them<EOT>"))[:70], "truncated"),
        (annotated((SO, "<BOT>add them<EOT>")).replace("She gives 2.", ""), "changed"),
        ("I cannot do that. <BOT>No<EOT>", "changed"),
        ("", "empty"),
        ("<BOT>add them<EOT>", "empty"),
    ],
)
def test_each_kind_of_copy_has_its_name(output, expected):
    parsed = parse(DOCUMENT, output)
    assert parsed.outcome == expected
    assert parsed.faithful == (expected in FAITHFUL) == (parsed.similarity >= 0.9)
    assert [start for start, _ in parsed.placed] == ([SO] if parsed.faithful and "<BOT>" in output else [])
    assert parsed.faithful or all(r.outcome == "unfaithful" for r in parsed.rationales)


def test_a_document_with_markers_of_its_own_is_left_alone():
    assert (
        parse("dependabot[bot] opened this.", "dependabot[bot] <BOT>why?<EOT> opened this.").outcome
        == "marked_document"
    )


def test_triples_are_cut_from_the_document_not_from_the_copy():
    output = (
        annotated((SO, "<BOT>add them<EOT> "), (THAT, "<BOT>take off<EOT>"))
        .replace("\n", " ")
        .replace("red", "rd")
    )
    first, second = cut_triples(Document("d", DOCUMENT, "s"), parse(DOCUMENT, output))
    assert (first.preceding, first.following) == (DOCUMENT[:SO], DOCUMENT[SO:THAT])
    assert (second.preceding, second.following) == (DOCUMENT[:THAT], DOCUMENT[THAT:])
    assert (first.start, first.end, second.start, second.end) == (SO, THAT, THAT, len(DOCUMENT))
    assert [(t.document_id, t.source, t.index, t.rationale) for t in (first, second)] == [
        ("d", "s", 0, "add them"),
        ("d", "s", 1, "take off"),
    ]


def test_real_annotations_of_gsm8k_parse(shared):
    annotations = read_annotations(shared / "rationalyst" / "extractor_output.jsonl")
    extraction = extract(annotations)
    assert extraction.annotated == 86
    assert extraction.documents == {"exact": 78, "near": 6, "changed": 2}
    assert extraction.rationales == {"clean": 216, "unfaithful": 5}
    text_of = {annotation.document.id: annotation.document.text for annotation in annotations}
    for triple in extraction.triples:
        assert text_of[triple.document_id].startswith(triple.preceding + triple.following)
    assert len(extraction.triples) == 216


def test_the_authors_triples_come_back_from_their_rejoined_documents(shared):
    """Their rows of one document follow each other; rejoined and marked again they split the same way."""
    lines = (shared / "rationalyst" / "rationales.jsonl").read_bytes().splitlines()
    rows = [json.loads(line) for line in lines]
    chains = [[rows[0]]]
    for row in rows[1:]:
        before = chains[-1][-1]
        if row["preceeding"].split() == (before["preceeding"] + before["following"]).split():
            chains[-1].append(row)
        else:
            chains.append([row])
    assert len(chains) < len(rows)
    for chain in chains:
        document = output = chain[0]["preceeding"]
        for row in chain:
            document += row["following"]
            output += f"<BOT>{row['rationale']}<EOT>{row['following']}"
        triples = cut_triples(Document("d", document, "s"), parse(document, output))
        theirs = [(r["preceeding"].split(), r["rationale"].strip(), r["following"].split()) for r in chain]
        assert [(t.preceding.split(), t.rationale, t.following.split()) for t in triples] == theirs


def test_places_survive_small_changes_anywhere_in_real_copies(shared):
    """Each copy loses a few characters far from its rationales; the exact copy is the oracle."""
    rng = random.Random(0)
    for annotation in read_annotations(shared / "rationalyst" / "extractor_output.jsonl"):
        assert isinstance(annotation, Annotation)
        document = annotation.document.text
        output = annotation.output
        exact = parse(document, output)
        at = rng.randrange(8, document.index("\nAnswer") - 8)  # no rationale stands in a question
        changed = parse(document, output[:at] + output[at + 3 :])
        if exact.outcome == "exact" and changed.faithful and "<BOT>" not in output[: at + 16]:
            assert changed.placed == exact.placed
