"""Given solutions: ProcessBench's own rows, bad rows, and those the world writes."""

import json
import re
from collections import Counter

import pytest
from cli_files import rationalyst

from rationalyst_jax.tasks.process_bench import GivenSolution, read_solutions
from rationalyst_jax.world.errors import SORTS, step_errors
from rationalyst_jax.world.problems import OPERATIONS, split_of

ROW = {"id": "a", "generator": "g", "problem": "How many?", "steps": ["One.", "Two."], "label": 1}


def written(tmp_path, *rows, name="solutions.json"):
    path = tmp_path / name
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(("name", "count", "right"), [("gsm8k", 400, 193), ("math", 1000, 406)])
def test_all_real_rows_are_read_as_published(shared, name, count, right):
    path = shared / "process_bench" / f"processbench_{name}.json"
    solutions = read_solutions(path)
    rows = json.loads(path.read_text())
    assert len(solutions) == count
    assert sum(solution.first_error is None for solution in solutions) == right
    for solution, row in zip(solutions, rows, strict=True):
        assert solution.id == row["id"] and list(solution.steps) == row["steps"]
        assert (-1 if solution.first_error is None else solution.first_error) == row["label"]
        assert solution.generator == row["generator"] != ""
    # Some problems have several solutions: these are one cluster.
    problems = Counter(solution.problem_key for solution in solutions)
    assert len(problems) == len({" ".join(row["problem"].split()) for row in rows}) < count


def test_minus_one_is_no_error_and_nought_is_the_first_step(tmp_path):
    rows = [ROW | {"id": str(label), "label": label} for label in (-1, 0, 1)]
    assert [s.first_error for s in read_solutions(written(tmp_path, *rows))] == [None, 0, 1]
    jsonl = tmp_path / "solutions.jsonl"
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_solutions(jsonl) == read_solutions(written(tmp_path, *rows))


def test_solutions_of_a_problem_have_one_key_however_it_is_spaced():
    keys = {GivenSolution("a", text, ("b",), None).problem_key for text in ("How  many?", "How many?\n")}
    assert len(keys) == 1
    assert GivenSolution("a", "How much?", ("b",), None).problem_key not in keys


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": 2}, "'label' must be one of 2 steps, 0 to 1, or -1 for no error, found 2"),
        ({"label": -2}, "found -2"),
        ({"label": None}, "found None"),
        ({"label": True}, "found True"),
        ({"label": "1"}, "found '1'"),
        ({"steps": []}, "'steps' must be a list of texts, found []"),
        ({"steps": "One."}, "'steps' must be a list of texts, found 'One.'"),
        ({"steps": ["One.", " "]}, "step 1 must be a text that is not blank, found ' '"),
        ({"steps": ["One.", 2]}, "step 1 must be a text that is not blank, found 2"),
        ({"problem": " "}, "'problem' is empty"),
        ({"problem": None}, "'problem' must be text, found None"),
        ({"id": ""}, "'id' is empty"),
        ({"id": "first"}, "id 'first' is there twice"),
        ({"generator": 3}, "'generator' must be text, found 3"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, says):
    path = written(tmp_path, ROW | {"id": "first"}, ROW | change)
    with pytest.raises(ValueError) as error:
        read_solutions(path)
    assert str(error.value) == f"{path}:2: {says}" or says in str(error.value)
    assert str(error.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize("key", ["id", "problem", "steps", "label"])
def test_a_missing_key_is_named(tmp_path, key):
    path = written(tmp_path, {name: value for name, value in ROW.items() if name != key})
    with pytest.raises(ValueError, match=f":1: .*'{key}'"):
        read_solutions(path)


# ---- The world's ----

STEP = re.compile(r".* (\d+) ([-+*/]) (\d+) = (\d+) .*\.")


def calculation(line):
    found = STEP.fullmatch(line)
    assert found is not None, line
    a, op, b, result = found.groups()
    return int(a), op, int(b), int(result)


def test_the_worlds_errors_are_where_the_label_says():
    rows = list(step_errors(0, 400))
    assert len({row["id"] for row in rows}) == 400
    assert Counter(row["label"] == -1 for row in rows) == {True: 200, False: 200}
    for right, wrong in zip(rows[::2], rows[1::2], strict=True):
        assert right["problem"] == wrong["problem"] and right["label"] == -1
        assert split_of(right["problem"]) == "evaluate"
        first = wrong["label"]
        assert right["steps"][:first] == wrong["steps"][:first]
        assert right["steps"][first] != wrong["steps"][first]
        *_, truth = calculation(right["steps"][first])
        *_, result = calculation(wrong["steps"][first])
        assert truth != result
        assert right["final_answer_correct"]


def test_each_step_goes_on_from_the_last_and_only_a_slip_miscalculates():
    rows = list(step_errors(1, 400))
    slips = 0
    for row in rows:
        *lines, answer = row["steps"]
        value = calculation(lines[0])[0]
        for place, line in enumerate(lines):
            a, op, b, result = calculation(line)
            assert a == value and 1 <= result <= 40
            slip = row["generator"] == "world: slip" and place == row["label"]
            assert (OPERATIONS[op](a, b) == result) != slip
            slips += slip
            value = result
        assert answer == f"The answer is {value}."
    assert slips > 20


def test_people_misread_numbers_are_mistaken_and_some_miscalculate():
    rows = list(step_errors(2, 600))
    sorts = Counter(row["generator"].removeprefix("world: ") for row in rows[1::2])
    assert sorts.keys() == SORTS.keys()
    assert all(abs(sorts[sort] / 300 - share) < 0.1 for sort, share in SORTS.items())


def test_equal_seeds_give_equal_errors_and_more_of_them_begin_alike(tmp_path, capsys):
    assert rationalyst(f"world errors --count 21 --seed 3 --out {tmp_path}/a.jsonl") == 0
    assert rationalyst(f"world errors --count 40 --seed 3 --out {tmp_path}/b.jsonl") == 0
    a, b = ((tmp_path / name).read_text() for name in ("a.jsonl", "b.jsonl"))
    assert b.startswith(a) and len(a.splitlines()) == 21
    assert list(step_errors(4, 21)) != list(step_errors(3, 21))
    assert len(read_solutions(tmp_path / "a.jsonl")) == 21
