"""What deduplication and decontamination find in real rows, and what memory that takes.

    python duplicates.py

Near-duplicates and evaluation questions are planted among 500 documents; whole data sets are searched for
duplicates with shingles of 3 and 5 words, and for questions of the evaluation sets. Nothing is timed.
"""

import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from documents import shared_data
from measure import arguments, print_table

from rationalyst_jax.files.rows import read_rows
from rationalyst_jax.mine.config import DecontaminateConfig, DedupConfig
from rationalyst_jax.mine.decontaminate import SAME, QuestionIndex, judge
from rationalyst_jax.mine.deduplicate import find_duplicates, sign
from rationalyst_jax.mine.documents import Document, read_documents
from rationalyst_jax.mine.minhash import banding
from rationalyst_jax.tasks.benchmarks import TASKS
from rationalyst_jax.tasks.question import Question

SHINGLES = (3, 5)  # words of a shingle
TRAINING = {
    "gsm8k": "gsm8k/train.jsonl",
    "math": "math/train.jsonl",
    "ecqa": "ecqa/ecqa_train.jsonl",
    "arc": "arc/train.jsonl",
    "proofwriter": "proofwriter/logic_llm_train.json",
}
EVALUATION = {
    "gsm8k": "gsm8k/test.jsonl",
    "math500": "math/math500.jsonl",
    "commonsense_qa": "ecqa/cqa_dev.jsonl",
    "hellaswag": "hellaswag/val_1000.jsonl",
    "proofwriter": "proofwriter/logic_llm_test.json",
    "arc": "arc/test.jsonl",
    "mmlu_pro": "mmlu_pro/test.parquet",
}
TEXTS = "pile_like/mixed.jsonl"
SIMILARITIES = (0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
COMPARED = 100_000  # documents whose comparison takes the memory that is told


def replaced(text: str, count: int, draw: random.Random) -> str:
    words = text.split(" ")
    for place in draw.sample(range(len(words)), count):
        words[place] = "something"
    return " ".join(words)


EDITS: dict[str, Callable[[str, random.Random], str]] = {
    "other case, punctuation, line breaks": (
        lambda text, _: text.upper().replace(". ", " ! ").replace("\n", "\n\n")
    ),
    "one word replaced": lambda text, draw: replaced(text, 1, draw),
    "two words replaced": lambda text, draw: replaced(text, 2, draw),
    "three words replaced": lambda text, draw: replaced(text, 3, draw),
    "a page around it": (
        lambda text, _: f"Home > Worksheets > Grade 4\n{text}\nPosted by admin on May 3. Share this."
    ),
}


def main() -> None:
    options = arguments(__doc__).parse_args()
    shared = shared_data()
    questions = {task: TASKS[task].read(shared / file) for task, file in EVALUATION.items()}
    tracemalloc.start()
    index = QuestionIndex(questions, DecontaminateConfig())
    of_index, _ = tracemalloc.get_traced_memory()
    memory = {
        "n-grams of the evaluation sets, MB": of_index / 1e6,
        "a document compared, where a fifth are duplicates, bytes": compared(COMPARED // 5) / COMPARED,
        "a document compared, where each is there twice, bytes": compared(COMPARED // 2) / COMPARED,
    }
    tracemalloc.stop()

    bands = banding(DedupConfig().similarity, DedupConfig().hashes)
    print_table(
        f"{bands.bands} bands of {bands.rows}, near-duplicates agree in {bands.needed} places",
        ["similarity", *map(str, SIMILARITIES)],
        [
            ["agree in a band", *(f"{bands.candidate_probability(s):.3f}" for s in SIMILARITIES)],
            ["found", *(f"{bands.found_probability(s):.3f}" for s in SIMILARITIES)],
        ],
    )
    clean = real_texts(shared)
    found = planted_duplicates(clean)
    columns = [f"found with {shingle} words" for shingle in SHINGLES]
    rows = [[kind, *(str(found[shingle][kind]) for shingle in SHINGLES)] for kind in [*EDITS, "clean"]]
    print_table(
        f"{len(clean) // 5} duplicates planted among {len(clean)} documents", ["kind", *columns], rows
    )
    planted = [f"{clean[i][:200]}\n\n{q.text}\n\nHelp!" for i, q in enumerate(questions["gsm8k"][::26][:50])]
    met = {"planted": against_evaluation(planted, index), "clean": against_evaluation(clean, index)}
    print_table(
        "questions of GSM8K's test set planted in texts, and documents without: those that meet a question",
        ["documents", "rows", "meet one", "with other numbers only"],
        [
            [name, str(len(texts)), *map(told, met[name])]
            for name, texts in (("planted", planted), ("clean", clean))
        ],
    )
    print("questions too short to be looked for:", {k: n for k, n in index.too_short.items() if n})

    training = {task: TASKS[task].read(shared / file) for task, file in TRAINING.items()}
    both = {question.id for question in training["ecqa"]} & {one.id for one in questions["commonsense_qa"]}
    print(f"rows of ECQA's training set that have an id of CommonsenseQA's validation set: {len(both)}")
    sets = {task: [full_text(question) for question in of_task] for task, of_task in training.items()}
    sets["pile_like"] = [document.text for document in read_documents(shared / TEXTS)]
    dropped = {name: [duplicates(texts, shingle) for shingle in SHINGLES] for name, texts in sets.items()}
    print_table(
        "duplicates in whole data sets",
        ["documents", "rows", "exact", *(f"near, {shingle} words" for shingle in SHINGLES)],
        [
            [name, str(len(sets[name])), str(several[0][0]), *(str(near) for _, near, _ in several)]
            for name, several in dropped.items()
        ],
    )
    against = {name: against_evaluation(texts, index) for name, texts in sets.items()}
    print_table(
        "whole data sets against evaluation sets: documents that meet a question",
        ["documents", "rows", "meet one", "with other numbers only"],
        [[name, str(len(sets[name])), *map(told, of)] for name, of in against.items()],
    )
    print_table("memory", ["of what", "takes"], [[of, f"{size:.0f}"] for of, size in memory.items()])
    if options.json:
        print(json.dumps({"planted": found, "met": met, "against": against, "memory": memory}))


def real_texts(shared: Path) -> list[str]:
    """500 problems of GSM8K's training set with their solutions: those of the annotated documents first."""
    annotated = [row["input"] for _, row in read_rows(shared / "rationalyst" / "extractor_output.jsonl")]
    rows = [row for _, row in read_rows(shared / TRAINING["gsm8k"])]
    rest = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows]
    return list(dict.fromkeys([*annotated, *rest]))[:500]


def full_text(question: Question) -> str:
    """A question with its options, and its solution or explanation where the set has one."""
    return "\n".join(filter(None, [question.asked, question.solution]))


def duplicates(texts: Sequence[str], shingle: int) -> tuple[int, int, list[int]]:
    """How many texts are exact and near-duplicates of earlier ones, and the numbers of all these."""
    config = DedupConfig(shingle=shingle)
    signed = sign((Document(str(i), text, "") for i, text in enumerate(texts)), config)
    bands = banding(config.similarity, config.hashes)
    found = find_duplicates(signed.text_hashes_N, signed.signatures_NP, bands)
    gone = np.flatnonzero(found.original_N >= 0).tolist()
    exact = int(found.exact_N.sum())
    return exact, len(gone) - exact, gone


def planted_duplicates(clean: Sequence[str]) -> dict[int, dict[str, int]]:
    """By the length of a shingle, how many are found of each kind, and of the clean texts."""
    draw = random.Random(0)
    kinds = [list(EDITS)[i % len(EDITS)] for i in range(len(clean) // 5)]
    planted = [EDITS[kind](text, draw) for kind, text in zip(kinds, clean[::5], strict=True)]
    found = {}
    for shingle in SHINGLES:
        _, _, gone = duplicates([*clean, *planted], shingle)
        of_kinds = Counter("clean" if i < len(clean) else kinds[i - len(clean)] for i in gone)
        found[shingle] = {kind: of_kinds[kind] for kind in [*EDITS, "clean"]}
    return found


def judged(text: str, index: QuestionIndex) -> dict | None:
    return judge(Document("", text, ""), index, DecontaminateConfig())


def against_evaluation(texts: Sequence[str], index: QuestionIndex) -> list[dict[str, int]]:
    """How many texts meet a question, and how many do so with other numbers only: all, and by task."""
    counts = [Counter[str](), Counter[str]()]
    for text in texts:
        if (verdict := judged(text, index)) is not None:
            masked = verdict["reason"] != SAME
            counts[masked]["all"] += 1
            counts[masked].update(met["task"] for met in verdict["met"] if met["masked"] == masked)
    return [dict(count) for count in counts]


def told(counts: dict[str, int]) -> str:
    by_task = ", ".join(f"{task} {count}" for task, count in counts.items() if task != "all")
    return f"{counts['all']}: {by_task}" if counts else "0"


def compared(twice: int) -> int:
    """Bytes that comparing random documents takes at its peak, their signatures included, where so many are
    there twice."""
    bands = banding(DedupConfig().similarity, DedupConfig().hashes)
    draw = np.random.default_rng(0)
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    originals = COMPARED - twice
    hashes_N = np.empty(COMPARED, np.uint64)
    signatures_NP = np.empty((COMPARED, bands.places), np.uint8)
    hashes_N[:originals] = draw.integers(2**63, size=originals)
    for first in range(0, originals, 1000):  # few at once, so that drawing them makes no peak
        of_signatures = signatures_NP[first : min(first + 1000, originals)]
        of_signatures[:] = draw.integers(256, size=of_signatures.shape, dtype=np.uint8)
    hashes_N[originals:] = hashes_N[:twice]
    signatures_NP[originals:] = signatures_NP[:twice]
    find_duplicates(hashes_N, signatures_NP, bands)
    _, peak = tracemalloc.get_traced_memory()
    return peak - before


if __name__ == "__main__":
    main()
