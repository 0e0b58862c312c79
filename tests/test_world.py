"""The embedded world: its problems, texts and tokenizer."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rationalyst_jax.files.whole import read_json
from rationalyst_jax.lm.weights.tokenizer import save_tokenizer
from rationalyst_jax.tasks.benchmarks import task_named
from rationalyst_jax.tasks.gsm8k import correct, extract
from rationalyst_jax.world.checkpoint import SHIPPED
from rationalyst_jax.world.corpus import QUESTION_SETS, RATIONALE_SORTS, document, documents, questions
from rationalyst_jax.world.pretraining import (
    QUESTION_WEIGHT,
    STEP_WEIGHT,
    THOUGHT_WEIGHT,
    Mixture,
    encode,
    pretraining_texts,
)
from rationalyst_jax.world.problems import KINDS, LARGEST, draw, split_of
from rationalyst_jax.world.vocabulary import make_tokenizer

TOKENIZER = make_tokenizer()


def question_of(pieces) -> str:
    return pieces[0][0].removesuffix("\n")


def test_no_question_is_shared_between_pretraining_mining_and_evaluation():
    sets = {
        "pretrain": {question_of(text) for text in pretraining_texts(0, 2000, Mixture())},
        "mine": {row["text"].split("\n")[0] for row in documents(0, 1000)},
        "evaluate": {row["question"] for name in QUESTION_SETS for row in questions(0, 300, name)},
    }
    for split, found in sets.items():
        assert {split_of(question) for question in found} == {split}
    assert len(sets["mine"]) == 1000 and len(sets["evaluate"]) == 900


@given(st.integers(0, 10**6))
def test_every_step_of_right_and_flawed_solutions_is_correct_arithmetic_within_range(seed):
    problem, misread = draw(random.Random(seed), "pretrain")
    for flags in ((False,) * len(misread), misread):
        lines, answer = problem.solve(flags)
        for line in lines[:-1]:
            left, op, right, _, result = line[line.index(next(c for c in line if c.isdigit())) :].split()[:5]
            value = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}[op]
            assert value(int(left), int(right)) == int(result) and 1 <= int(result) <= LARGEST
        assert lines[-1] == f"The answer is {answer}."
        assert 2 <= len(lines) <= 6


def test_people_fall_for_traps_as_often_as_the_recipe_says():
    rng = random.Random(0)
    steps = Counter()
    errors = Counter()
    right = 0
    traps = 0
    for _ in range(4000):
        problem, misread = draw(rng, "pretrain")
        for relation, flag in zip(problem.relations, misread, strict=True):
            steps[relation.kind] += 1
            errors[relation.kind] += flag
        right += problem.solve(misread)[1] == problem.answer
        traps += any(KINDS[relation.kind].trap for relation in problem.relations)
    for name, kind in KINDS.items():
        spread = (kind.error_rate * (1 - kind.error_rate) / steps[name]) ** 0.5
        assert abs(errors[name] / steps[name] - kind.error_rate) < 4 * spread < kind.error_rate
    assert 0.70 < traps / 4000 < 0.82 and 0.36 < right / 4000 < 0.46


def test_unseen_phrasings_never_occur_in_pretraining():
    seen = {question_of(text) for text in pretraining_texts(1, 1500, Mixture())}
    assert not any(", compared to " in question or " has, " in question for question in seen)
    held_out = [row["question"] for row in questions(0, 50, "phrasing")]
    assert any(", compared to " in question for question in held_out)
    assert any(" has, " in question for question in held_out)
    assert all(kind.unseen not in kind.seen for kind in KINDS.values() if kind.weight)


def test_longer_chains_are_longer_than_any_in_pretraining():
    longest = max(len(draw(random.Random(seed), "pretrain")[0].relations) for seed in range(2000))
    assert longest == 5 and all(row["answer"].count("\n") > 5 for row in questions(0, 50, "longer"))


def test_questions_are_read_and_graded_by_the_ordinary_task(tmp_path):
    import json

    path = tmp_path / "questions.jsonl"
    rows = list(questions(0, 50))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = task_named("gsm8k")
    for question, row in zip(task.read(path), rows, strict=True):
        gold = row["answer"].split("#### ")[1]
        assert correct(extract(f"The answer is {gold}."), question.gold)
        assert not correct(extract(f"The answer is {int(gold) + 1}."), question.gold)


@given(st.text())
def test_the_tokenizer_gives_every_text_back(text):
    text = text.encode("utf-8", "ignore").decode()
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_worlds_own_texts_need_no_bytes_and_one_token_a_number():
    rng = random.Random(3)
    for _ in range(300):
        problem, misread = draw(rng, "evaluate", phrasing=rng.choice(["seen", "unseen"]))
        tokens = TOKENIZER.tokenize(document(problem, misread))
        assert not [token for token in tokens if token.startswith("<0x") and token != "<0x20>"]
    assert TOKENIZER.tokenize(" has 12 - 5") == [" has", " 12", " -", " 5"]


def test_pretraining_texts_decode_to_their_pieces_and_weigh_thoughts_most():
    kinds = Counter()
    for pieces in pretraining_texts(2, 300, Mixture()):
        ids, weights = encode(TOKENIZER, pieces)
        assert TOKENIZER.decode(ids[1:-1]) == "".join(text for text, _ in pieces)
        assert len(ids) == len(weights) and weights[0] == 0.0
        inside = False  # thoughts weigh most
        for token, weight in zip(TOKENIZER.convert_ids_to_tokens(ids), weights, strict=True):
            inside |= token == "<BOT>"
            assert (weight == max(QUESTION_WEIGHT, STEP_WEIGHT, THOUGHT_WEIGHT)) == inside
            inside &= token != "<EOT>"
        kinds["annotation" if any("<|copy|>" in text for text, _ in pieces) else "document"] += 1
    assert kinds["annotation"] > 50 and kinds["document"] > 150


def test_the_same_seed_gives_the_same_texts():
    assert list(documents(4, 20)) == list(documents(4, 20)) != list(documents(5, 20))


def test_an_unknown_question_set_is_refused():
    with pytest.raises(ValueError, match="unknown question set 'hard'"):
        next(questions(0, 1, "hard"))


def test_the_annotators_sorts_are_shares():
    assert sum(RATIONALE_SORTS.values()) == pytest.approx(1)


def test_the_shipped_tokenizer_is_the_one_that_pretraining_writes(tmp_path):
    save_tokenizer(TOKENIZER, tmp_path)
    for file in tmp_path.iterdir():
        assert (SHIPPED / file.name).read_bytes() == file.read_bytes(), file.name
    # The one that version 5 of transformers would name is unknown to version 4.
    assert read_json(SHIPPED / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
