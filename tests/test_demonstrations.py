"""What an agent is shown before its question: our own shots, or ones drawn from a training split."""

from dataclasses import replace
from typing import Any

import pytest

from rationalyst_jax.prompts.prompt import PromptSet, load_demonstrations, load_prompts, messages
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.demonstrations import shown
from rationalyst_jax.tasks.benchmarks import TASKS
from rationalyst_jax.tasks.question import Question

GSM8K = TASKS["gsm8k"]
MMLU_PRO = TASKS["mmlu_pro"]
LLAMA3 = load_prompts("llama3")
FIELDS = {"question": "Q?", "steps": "", "preceding": "", "rationale": "why"}


def sums(name: str, count: int, **fields: Any) -> list[Question]:
    return [
        Question(f"{name}{i}", f"{name}: {i} + 1?", str(i + 1), solution=f"{i} + 1 = {i + 1}", **fields)
        for i in range(count)
    ]


ASKED = sums("test", 3)


def chat(prompts: PromptSet, name: str = "step") -> list[tuple[str, str]]:
    return list(messages(prompts[name], FIELDS))


def test_our_own_shots_stand_before_the_question_once_each():
    prompts, by_subject = shown(LLAMA3, GSM8K, ReasonConfig(), ASKED)
    own = load_demonstrations("gsm8k")
    expected = [("system", own.instruction)]
    for shot in own.shots:
        expected += [("user", shot.question), ("assistant", shot.solution)]
    assert not by_subject and chat(prompts) == [*expected, ("user", "Q?")]
    assert chat(prompts, "step_guided") == [*expected, ("user", "Q?"), ("assistant", "why\n")]
    fewer, _ = shown(LLAMA3, GSM8K, ReasonConfig(shots=1), ASKED)
    assert chat(fewer) == [*expected[:3], ("user", "Q?")]
    none, _ = shown(LLAMA3, GSM8K, ReasonConfig(shots=0), ASKED)
    assert chat(none) == [expected[0], ("user", "Q?")]
    assert len({LLAMA3.version, prompts.version, fewer.version, none.version}) == 4


def test_prompts_without_a_place_for_shots_stay_as_they_are():
    world = load_prompts("world")
    assert shown(world, GSM8K, ReasonConfig(), ASKED) == (world, {})
    with pytest.raises(ValueError, match="have no place for shots"):
        shown(world, GSM8K, ReasonConfig(shots=1), ASKED, sums("train", 3))


def test_drawn_shots_follow_the_seed_and_are_never_asked_themselves():
    pool = [*ASKED, *sums("held", 4, split="test"), *sums("train", 12)]
    drawn = [shown(LLAMA3, GSM8K, ReasonConfig(seed=seed), ASKED, pool)[0] for seed in (0, 0, 1)]
    questions = [[text for role, text in chat(p) if role == "user"][:-1] for p in drawn]
    assert questions[0] == questions[1] != questions[2]
    assert drawn[0].version == drawn[1].version != drawn[2].version
    assert all(len(set(q)) == 9 for q in questions)  # the paper's number
    assert all(text.startswith("train") for q in questions for text in q)
    shot = chat(drawn[0])[2][1]
    assert shot.splitlines()[-1].startswith("The answer is ")
    with pytest.raises(ValueError, match="13 shots are to be drawn, but there are 12"):
        shown(LLAMA3, GSM8K, ReasonConfig(shots=13), ASKED, pool)
    with pytest.raises(ValueError, match="shots is 4, gsm8k has 3 of our own"):
        shown(LLAMA3, GSM8K, ReasonConfig(shots=4), ASKED)


def test_each_category_of_mmlu_pro_has_shots_of_its_own():
    asked = [replace(q, subject=s) for q, s in zip(ASKED, ("law", "math", "law"), strict=True)]
    pool = [*sums("law", 5, subject="law"), *sums("math", 5, subject="math"), *sums("art", 5, subject="art")]
    _, by_subject = shown(LLAMA3, MMLU_PRO, ReasonConfig(), asked, pool)
    assert by_subject.keys() == {"law", "math"}
    for subject, prompts in by_subject.items():
        shots = [text for role, text in chat(prompts) if role == "user"][:-1]
        assert len(shots) == 5 and all(text.startswith(subject) for text in shots)


def test_demonstrations_of_ones_own_are_checked(tmp_path):
    path = tmp_path / "mine.yaml"
    for text, said in (
        ("[1]", "exactly the keys instruction and shots"),
        ("{instruction: x, shots: 3}", "shots must be a list"),
        ("{instruction: x, shots: [{question: q}]}", "shot 1 must have exactly the keys"),
        ("{", "not YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"mine\.yaml: .*{said}"):
            load_demonstrations(path)
    with pytest.raises(FileNotFoundError, match="no such file of demonstrations"):
        load_demonstrations(tmp_path / "none.yaml")
    path.write_text("{instruction: 'write {x}', shots: [{question: '{question}?', solution: '{a}'}]}")
    prompts = LLAMA3.shown(load_demonstrations(path))
    assert chat(prompts) == [
        ("system", "write {x}"),
        ("user", "{question}?"),
        ("assistant", "{a}"),
        ("user", "Q?"),
    ]
