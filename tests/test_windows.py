"""Texts cut into windows of tokens, by worker processes that may die."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_encoder import VOCABULARY, save_tokenizer
from tokenizers import Tokenizer, pre_tokenizers

from rationalyst_jax.lm.weights.wordpiece import WordPieces, open_word_pieces
from rationalyst_jax.mine.windows import NORMALISATIONS, Cutter, sentence_spans
from rationalyst_jax.mine.workers import in_order


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> WordPieces:
    return open_word_pieces(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


TEXT = st.text(st.sampled_from("ab the s.!?\n\"' 0é中。…\u2028"), max_size=200)


@given(TEXT)
def test_sentences_hold_the_whole_text(text):
    spans = sentence_spans(text)
    assert "".join(text[start:end] for start, end in spans) == text
    assert all(start < end for start, end in spans) or not text


def test_a_long_run_of_dots_takes_no_longer_than_other_text():
    """A pattern that goes back and forth in it would take hours."""
    text = "." * 1_000_000
    assert list(sentence_spans(text)) == [(0, len(text))]


def test_sentences_end_where_a_reader_would_say():
    text = 'He ran. "Why?" she asked.\nAt 3.5 km (in all!) he\n\nstopped… 他跑了。为什么？'
    assert [text[start:end].strip() for start, end in sentence_spans(text)] == [
        "He ran.",
        '"Why?"',
        "she asked.",
        "At 3.5 km (in all!)",
        "he",
        "stopped…",
        "他跑了。",
        "为什么？",
    ]


@given(TEXT, st.integers(4, 40), st.sampled_from(sorted(NORMALISATIONS)))
def test_windows_hold_every_character_once_and_no_more_tokens_than_allowed(pieces, text, most, normalisation):
    [windows] = Cutter(pieces, most, normalisation)([text])
    assert "".join(text[window.start : window.end] for window in windows) == text
    for window in windows:
        assert len(window.tokens) <= most and window.tokens.dtype == np.int32
        assert window.tokens[0] == 1 and window.tokens[-1] == 2


@given(TEXT, st.sampled_from(sorted(NORMALISATIONS)))
def test_a_text_that_fits_has_one_window_of_the_tokens_it_has_as_a_whole(pieces, text, normalisation):
    [windows] = Cutter(pieces, 1000, normalisation)([text])
    [expected] = pieces.encode([NORMALISATIONS[normalisation](text)])
    assert [window.tokens.tolist() for window in windows] == [[1, *expected, 2]]


def test_windows_are_cut_where_sentences_end_and_about_equally_long(pieces):
    text = " ".join("abcdefghi."[i % 5 :] for i in range(30))
    [windows] = Cutter(pieces, 60, "none")([text])
    assert all(text[window.end - 2 : window.end] == ". " for window in windows[:-1])
    lengths = [len(window.tokens) for window in windows]
    assert len(lengths) > 2 and min(lengths) > 30


def test_special_tokens_in_a_text_are_text(pieces):
    [ids] = pieces.encode(["[SEP]"])
    assert 2 not in ids and pieces.size == len(VOCABULARY)


def test_the_papers_normalisation_leaves_words_that_say_something():
    normalise = NORMALISATIONS["paper"]
    assert normalise("It's NOT the-man’s 3.5 €, \\frac{1}{2}!") == "mans 3 5 frac 1 2"
    assert normalise("Don't they?") == "dont"


def test_a_tokenizer_that_cuts_texts_is_refused(tmp_path):
    file = save_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\t", "removed")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save(str(file))
    with pytest.raises(ValueError, match=r"tokenizer\.json: makes other tokens of a text than of its words"):
        open_word_pieces(file)
    tokenizer.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save(str(file))
    with pytest.raises(ValueError, match=r"tokenizer\.json: puts 0 tokens around a text"):
        open_word_pieces(file)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a readable tokenizer"):
        open_word_pieces(file)


# ---- Workers ----


def slow_when_even(number: int) -> tuple[int, int]:
    time.sleep(0.05 * (number % 2 == 0))
    return number, os.getpid()


def fails_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


def dies(path: str) -> str:
    """Kills its process as often as the file has letters."""
    left = Path(path).read_text()
    if left:
        Path(path).write_text(left[1:])
        os.kill(os.getpid(), signal.SIGKILL)
    return path


def test_answers_come_in_order_from_several_processes_that_end_with_the_work():
    answers = list(
        in_order(slow_when_even, iter(range(20)), workers=3, preload="rationalyst_jax.mine.windows")
    )
    assert [number for number, _ in answers] == list(range(20))
    processes = {process for _, process in answers}
    assert len(processes) > 1 and os.getpid() not in processes
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_rises_when_its_item_is_next(workers):
    answers = in_order(fails_at_three, range(9), workers, preload="rationalyst_jax.mine.windows")
    assert [next(answers) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(answers)


def test_a_killed_worker_costs_nothing_but_one_item_that_kills_all_is_named(tmp_path):
    files = [tmp_path / name for name in "abc"]
    for file, deaths in zip(files, ("", "xx", ""), strict=True):
        file.write_text(deaths)
    paths = list(map(str, files))
    assert list(in_order(dies, paths, workers=2, preload="rationalyst_jax.mine.windows")) == paths
    files[1].write_text("xxx")
    with pytest.raises(RuntimeError, match=r"3 worker processes died on one item: '.*/b'"):
        list(in_order(dies, paths, workers=2, preload="rationalyst_jax.mine.windows"))


ENDLESS = """
import time
from rationalyst_jax.mine.workers import in_order
from test_windows import slow_when_even
if __name__ == "__main__":
    for _, process in in_order(slow_when_even, iter(int, 1), 1, "rationalyst_jax.mine.windows"):
        print(process, flush=True)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    program = tmp_path / "endless.py"
    program.write_text(ENDLESS)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    parent = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(600):
        if not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text().split()[2]:
            break
        time.sleep(0.1)
    else:
        raise AssertionError(f"worker {worker} lives on")


def test_what_workers_run_imports_no_jax():
    program = "import sys, rationalyst_jax.mine.windows; assert not {'jax', 'transformers'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", program], check=True)
