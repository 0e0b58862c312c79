"""Evaluation questions in documents: n-grams against sets of words, planted questions among clean texts."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dedup import real_documents

from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.mine.config import DecontaminateConfig
from rationalyst_jax.mine.decontaminate import QuestionIndex, judge
from rationalyst_jax.mine.documents import Document, read_documents
from rationalyst_jax.mine.shards import read_verdicts
from rationalyst_jax.mine.words import words_of
from rationalyst_jax.pipeline.decontaminate import decontaminate
from rationalyst_jax.tasks.benchmarks import TASKS
from rationalyst_jax.tasks.question import Question

CONFIG = DecontaminateConfig()
QUESTION = "Ann has 3 red apples and buys 4 more at the market, how many apples does she have in all?"
OTHER_NUMBERS = QUESTION.replace("3", "12").replace("4", "1,000")


def index_of(*texts: str, config: DecontaminateConfig = CONFIG) -> QuestionIndex:
    return QuestionIndex({"gsm8k": [Question(f"q{i}", text) for i, text in enumerate(texts)]}, config)


def said(text: str, index: QuestionIndex, config: DecontaminateConfig = CONFIG):
    return judge(Document("d", text, "web"), index, config)


# ---- Against brute force ----


def mask(words: Sequence[str]) -> list[str]:
    return ["0" if word[0].isdigit() else word for word in words]


def ngrams(words: Sequence[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def telling(found: set[tuple[str, ...]], least: int) -> set[tuple[str, ...]]:
    return {ngram for ngram in found if sum(not word[0].isdigit() for word in ngram) >= least}


def shared_by_sets(text: str, question: Question, config: DecontaminateConfig) -> tuple[int, int]:
    """How many n-grams both have, with numbers and with masked numbers, as sets of words say."""
    words = words_of(text)
    asked = words_of(question.text)
    if len(asked) >= config.ngram:
        looked_for = telling(ngrams(asked, config.ngram), config.min_words)
        masked = {tuple(mask(ngram)) for ngram in looked_for}
        here = ngrams(words, config.ngram)
        return len(looked_for & here), len(masked & {tuple(mask(ngram)) for ngram in here})
    if sum(not word[0].isdigit() for word in asked) < config.min_words:
        asked = words_of(question.asked)[: config.ngram]
    whole = telling({tuple(asked)}, config.min_words)
    return len(whole & ngrams(words, len(asked))), 0


WORDS = st.lists(st.sampled_from(["a", "b", "c", "7", "8"]), max_size=14).map(" ".join)
QUESTIONS = st.builds(
    lambda text, choices: Question("", text, choices=tuple(choices)), WORDS, st.lists(WORDS, max_size=2)
)


@given(text=WORDS, questions=st.lists(QUESTIONS, min_size=1, max_size=4))
@settings(max_examples=200)
def test_shared_ngrams_are_those_of_sets_of_words(text, questions):
    config = DecontaminateConfig(ngram=4, min_words=2)
    named = [Question(f"q{i}", q.text, choices=q.choices) for i, q in enumerate(questions)]
    expected = [shared_by_sets(text, question, config) for question in named]
    verdict = said(text, QuestionIndex({"arc": named}, config), config)
    best = max(same for same, _ in expected), max(masked for _, masked in expected)
    if not any(best):
        assert verdict is None
        return
    assert verdict is not None
    [met] = verdict["met"]
    is_masked = not best[0]
    assert met["masked"] == is_masked and met["shared"] == best[is_masked]
    first = next(i for i, found in enumerate(expected) if found[is_masked] == best[is_masked])
    assert met["question"] == f"q{first}"
    assert f" {met['words']} " in f" {' '.join(words_of(text))} "


def test_real_questions_are_met_where_sets_of_words_say_so(shared):
    questions = TASKS["math500"].read(shared / "math" / "math500.jsonl")
    same: dict[tuple[str, ...], str] = {}
    masked: dict[tuple[str, ...], str] = {}
    for question in questions:
        words = words_of(question.text)
        if len(words) >= 13:
            found = telling(ngrams(words, 13), 8)
            masked |= {tuple(mask(ngram)): question.id for ngram in found}
        else:
            found = telling({tuple(words)}, 8)
        same |= dict.fromkeys(found, question.id)
    index = QuestionIndex({"math500": questions}, CONFIG)
    met = Counter[str]()
    for document in TASKS["math"].read(shared / "math" / "train.jsonl")[:800]:
        words = words_of(document.text)
        every = set[tuple[str, ...]]().union(*(ngrams(words, length) for length in range(8, 14)))
        reason = None
        if every & same.keys():
            reason = "question"
        elif {tuple(mask(ngram)) for ngram in every} & masked.keys():
            reason = "question_with_other_numbers"
        verdict = said(document.text, index)
        assert (verdict and verdict["reason"]) == reason, document.id
        met[str(reason)] += 1
    assert met == {"None": 788, "question": 8, "question_with_other_numbers": 4}


def test_questions_that_two_real_data_sets_share_are_found_by_their_words(shared):
    # ECQA's training rows hold 794 questions of CommonsenseQA's validation split, under the same ids.
    questions = TASKS["commonsense_qa"].read(shared / "ecqa" / "cqa_dev.jsonl")
    index = QuestionIndex({"commonsense_qa": questions}, CONFIG)
    rows = TASKS["ecqa"].read(shared / "ecqa" / "ecqa_train.jsonl")[:2000]
    met = {row.id for row in rows if said(row.asked, index)}
    assert met == {row.id for row in rows} & {question.id for question in questions}
    assert len(met) > 200


# ---- What counts ----


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"Homework:\n{QUESTION}\nThank you.", "question"),
        (QUESTION.upper().replace(",", " ;").replace(" ", "\n"), "question"),
        (OTHER_NUMBERS, "question_with_other_numbers"),
        (" ".join(QUESTION.split()[:14]), "question"),
        (" ".join(QUESTION.split()[:11]), None),
        (QUESTION.replace("market", "fair"), None),
    ],
)
def test_thirteen_words_in_a_row_are_enough(text, reason):
    verdict = said(text, index_of(QUESTION))
    assert (verdict and verdict["reason"]) == reason


def test_a_verdict_names_task_question_and_words():
    index = QuestionIndex({"gsm8k": [Question("other", "x " * 20), Question("q", QUESTION)]}, CONFIG)
    assert said(f"See here: {QUESTION}", index) == {
        "kept": False,
        "reason": "question",
        "met": [
            {
                "task": "gsm8k",
                "question": "q",
                "shared": 8,
                "of": 8,
                "masked": False,
                "words": "ann has 3 red apples and buys 4 more at the market how",
            }
        ],
    }


def test_a_short_question_is_looked_for_as_a_whole():
    index = index_of("Where would you expect to find white mice?")
    assert said("I ask: where would you expect to find white mice (not grey ones)?", index)
    assert said("where would you expect to find mice", index) is None


def test_a_question_of_few_words_is_looked_for_with_its_options():
    question = Question(
        "q", "What do mice eat?", choices=("cheese", "wooden tables", "the moon", "old books")
    )
    index = QuestionIndex({"arc": [question]}, CONFIG)
    assert said("What do mice eat?\n(A) cheese (B) wooden tables (C) the moon (D) old books", index)
    assert said("What do mice eat? Nobody knows what they eat, if they eat at all.", index) is None


def test_numbers_of_short_questions_are_not_masked():
    index = index_of("What is the greatest common factor of 12 and 18?")
    assert said("What is the greatest common factor of 12 and 18?", index)
    assert said("What is the greatest common factor of 14 and 21?", index) is None


def test_tables_of_numbers_meet_nothing():
    numbers = " ".join(map(str, range(40)))
    assert said(f"{numbers} and so on", index_of(f"Which number follows? {numbers}")) is None


def test_questions_too_short_to_be_looked_for_are_counted():
    index = index_of("What is 2 + 3?", "", QUESTION, "1 2 3 4 5 6 7 8 9 10 11 12 13 14")
    assert index.too_short == {"gsm8k": 3}
    assert said("What is 2 + 3?", index) is None


def test_masked_numbers_alone_drop_nothing_where_they_need_not():
    config = DecontaminateConfig(drop_masked=False)
    verdict = said(OTHER_NUMBERS, index_of(QUESTION, config=config), config)
    assert verdict and verdict["kept"] and verdict["reason"] == "question_with_other_numbers"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ngram": 0}, "decontaminate: ngram must be at least 1, got 0"),
        ({"min_words": 0}, "decontaminate: min_words must be at least 1, got 0"),
        ({"min_words": 14}, "decontaminate: min_words must be at most ngram, 13, got 14"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DecontaminateConfig(**changes)


# ---- Shards ----


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards of documents, and questions of two tasks."""
    monkeypatch.chdir(tmp_path)
    write_rows(Path("in/a.jsonl"), [{"text": "Nothing is asked here."}, {"text": f"{QUESTION} Twelve."}])
    write_rows(Path("in/b.jsonl"), [{"text": OTHER_NUMBERS, "source": "forum"}])
    write_rows(Path("gsm8k.jsonl"), [{"id": "g", "question": QUESTION, "answer": "3 + 4 = 7\n#### 7"}])
    choices = {"text": ["yes", "no"], "label": ["A", "B"]}
    write_rows(Path("arc.jsonl"), [{"id": "a", "question": "Is it?", "choices": choices, "answerKey": "A"}])
    return tmp_path


AGAINST = {"gsm8k": "gsm8k.jsonl", "arc": "arc.jsonl"}


def test_documents_go_with_the_question_that_they_meet(here):
    outcomes, found = decontaminate(Path("in"), AGAINST, CONFIG, Path("out"))
    assert outcomes == {"in": {"kept": 1, "question": 1}, "forum": {"question_with_other_numbers": 1}}
    assert [d.text for d in read_documents("out/documents/a.jsonl")] == ["Nothing is asked here."]
    assert Path("out/documents/b.jsonl").read_bytes() == b""
    [verdict] = read_verdicts(Path("out/verdicts/b.jsonl"))
    assert verdict["id"] == "b-1" and verdict["met"][0]["question"] == "g"
    counts = {"questions": 1, "too_short": 0, "questions_met": 1, "documents": 1, "documents_masked": 1}
    assert vars(found["gsm8k"]) == counts
    assert vars(found["arc"]) == {key: key in ("questions", "too_short") for key in counts}
    record = json.loads(Path("out/decontaminate.json").read_text())
    assert record["outcomes"] == outcomes and record["tasks"]["gsm8k"] == counts


def test_other_questions_are_refused(here):
    decontaminate(Path("in"), AGAINST, CONFIG, Path("out"))
    with pytest.raises(
        ValueError, match=r"decontaminate\.config\.json: made with other settings: questions.arc"
    ):
        decontaminate(Path("in"), {"gsm8k": "gsm8k.jsonl"}, CONFIG, Path("out"))
    Path("gsm8k.jsonl").write_text(Path("gsm8k.jsonl").read_text() * 1 + "\n")
    with pytest.raises(ValueError, match=r"made with other settings: questions.gsm8k"):
        decontaminate(Path("in"), AGAINST, CONFIG, Path("out"))


def test_a_malformed_row_leaves_finished_shards(here):
    with Path("in/b.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(ValueError, match=re.escape("in/b.jsonl:2: not JSON")):
        decontaminate(Path("in"), AGAINST, CONFIG, Path("out"))
    assert Path("out/done/a.json").exists() and not Path("out/done/b.json").exists()
    assert not list(Path("out").rglob("*.unfinished"))
    rows = Path("in/b.jsonl").read_text().splitlines(keepends=True)
    Path("in/b.jsonl").write_text("".join(rows[:-1]))  # the row is mended: the same command goes on
    outcomes, _ = decontaminate(Path("in"), AGAINST, CONFIG, Path("out"))
    assert outcomes == decontaminate(Path("in"), AGAINST, CONFIG, Path("whole"))[0]


def test_an_unknown_task_is_named(here):
    with pytest.raises(ValueError, match="unknown task 'gsm9k'"):
        decontaminate(Path("in"), {"gsm9k": "gsm8k.jsonl"}, CONFIG, Path("out"))


# ---- Real documents ----

EVALUATED = {
    "gsm8k": "gsm8k/test.jsonl",
    "math500": "math/math500.jsonl",
    "commonsense_qa": "ecqa/cqa_dev.jsonl",
    "hellaswag": "hellaswag/val_1000.jsonl",
    "arc": "arc/test.jsonl",
}
# Looked at: these two problems of GSM8K's training set are ones of its test set with other names and numbers.
REALLY_MET = {"clean-10": "test-633", "clean-406": "test-582"}


def test_planted_questions_are_found_and_of_clean_documents_only_those_that_really_meet_one(shared, tmp_path):
    clean = real_documents(shared)
    questions = TASKS["gsm8k"].read(shared / "gsm8k" / "test.jsonl")
    planted = {
        f"planted-{q.id}": f"{clean[i][:200]}\n\n{q.text}\n\nPlease help!"
        for i, q in enumerate(questions[::26][:50])
    }
    rows = [{"id": f"clean-{i}", "text": text} for i, text in enumerate(clean)]
    rows += [{"id": id, "text": text} for id, text in planted.items()]
    write_rows(tmp_path / "in.jsonl", rows)
    against = {task: shared / path for task, path in EVALUATED.items()}
    decontaminate(tmp_path / "in.jsonl", against, CONFIG, tmp_path / "out")
    met = {
        row["id"]: row["met"][0]["question"]
        for row in read_verdicts(tmp_path / "out" / "verdicts" / "in.jsonl")
    }
    assert len(planted) == 50
    assert met == REALLY_MET | {id: id.removeprefix("planted-") for id in planted}
