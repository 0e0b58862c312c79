"""Do real rationales explain real text? Gains of rationales under a real model, against controls.

At each place where a rationale was written stand four texts in turn: the rationale; one of another document,
drawn by lot; a phrase that says nothing; and the last sentence before the place, once more. The gain is the
filter's: how much likelier the text that follows becomes, as a decayed sum of log-probabilities (nats), under
the filter's own prompts. What a control gains is due to the marker, the prompt and the length.

Rationales are those of a file, or the explanations that a task's questions have (ECQA, MMLU-Pro), cut into
sentences: then each sentence is a rationale for the next one, and the last for the statement of the answer.

Intervals are 95 %; whole documents are resampled.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from measure import arguments, print_table
from rich.console import Console

from rationalyst_jax.evaluate.statistics import Interval, mean_interval, proportion_interval
from rationalyst_jax.lm.weights.open import open_checkpoint
from rationalyst_jax.mine.config import FilterConfig
from rationalyst_jax.mine.likelihood_filter import score_triples
from rationalyst_jax.mine.places import find_places
from rationalyst_jax.mine.triple_files import read_triple_files
from rationalyst_jax.mine.triples import Triple
from rationalyst_jax.prompts.prompt import load_prompts
from rationalyst_jax.report.progress import track
from rationalyst_jax.tasks.benchmarks import task_named
from rationalyst_jax.tasks.sources import read_questions
from rationalyst_jax.tasks.task import Task

PHRASE = "Let us see how this goes on."
EXPLAINED = ("ecqa", "mmlu_pro")
KINDS = ("its own", "another document's", "a phrase", "the sentence before it")


def explained(task: Task, path: Path) -> list[Triple]:
    """The sentences of explanations, each with the text before it and the sentence that it leads to."""
    made = []
    for question in read_questions(task, path):
        solution = " ".join(question.solution.split())
        opening = f"Question: {question.asked}\nAnswer: "
        text = f"{opening}{solution} The answer is {question.gold}."
        closing = len(opening) + len(solution) + 1
        starts = [
            len(opening),
            *(place for place in find_places(text, "sentence") if len(opening) < place < closing),
        ]
        ends = [*starts[1:], closing, len(text)]
        for index, start in enumerate(starts if solution else ()):
            written, following = text[start : ends[index]], text[ends[index] : ends[index + 1]]
            spot = ends[index], ends[index + 1]
            made.append(
                Triple(question.id, task.name, index, *spot, text[:start], written.strip(), following)
            )
    return made


def controls(triples: list[Triple], seed: int) -> list[Triple]:
    """Each triple with the rationales of all KINDS, one after the other.

    Released rows have the white space of a place on both sides of it: it counts once.
    """
    rng = np.random.default_rng(seed)
    made = []
    for triple in triples:
        others = [other for other in triples if other.document_id != triple.document_id]
        lines = triple.preceding.strip().replace("\n", ". ").rsplit(". ", 1)
        texts = (triple.rationale, others[rng.integers(len(others))].rationale, PHRASE, lines[-1])
        made += [
            replace(
                triple,
                rationale=text,
                following=triple.following.lstrip(),
                index=len(KINDS) * triple.index + kind,
            )
            for kind, text in enumerate(texts)
        ]
    return made


def shown(interval: Interval, scale: float = 1) -> str:
    return f"{scale * interval.mean:.2f} [{scale * interval.low:.2f}, {scale * interval.high:.2f}]"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a Hugging Face checkpoint")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--rationales", type=Path, help="Parquet or JSONL: preceding, rationale, following")
    for name in EXPLAINED:
        what.add_argument(f"--{name}", type=Path, help="the task's questions with explanations")
    parser.add_argument(
        "--out", type=Path, required=True, help="JSONL file of scores; a killed run goes on there"
    )
    parser.add_argument("--tau", type=float, default=1.2, help="nats; the paper's threshold for GSM8K")
    parser.add_argument("--limit", type=int, help="so many rationales, the first ones")
    parser.add_argument("--seed", type=int, default=0, help="of the lots")
    options = parser.parse_args()

    checkpoint = open_checkpoint(options.model)
    model = checkpoint.load_for_inference()
    if options.rationales is not None:
        triples = read_triple_files(options.rationales)
    else:
        [name] = [name for name in EXPLAINED if getattr(options, name) is not None]
        triples = explained(task_named(name), getattr(options, name))
    triples = triples[: options.limit]
    config = FilterConfig(row_length=2048, rows_per_batch=1, block=8)
    with track(Console(), "rationales scored") as tell:
        scored, work = score_triples(
            controls(triples, options.seed),
            model,
            checkpoint.tokenizer,
            load_prompts("llama3"),
            config,
            options.out,
            tell,
        )
    gains = [[one.gain for one in scored[i : i + len(KINDS)]] for i in range(0, len(scored), len(KINDS))]
    fitting = [i for i, gain in enumerate(gains) if None not in gain]  # the others are longer than a row
    gain_TK = np.array([gains[i] for i in fitting], np.float64)
    clusters = [triples[i].document_id for i in fitting]
    rows = []
    for kind, gain_T in zip(KINDS, gain_TK.T, strict=True):
        less_T = gain_TK[:, 0] - gain_T
        rows.append(
            [
                kind,
                shown(mean_interval(gain_T, clusters=clusters)),
                " / ".join(
                    f"{quantile:.1f}" for quantile in np.quantile(gain_T, [0.1, 0.25, 0.5, 0.75, 0.9])
                ),
                shown(proportion_interval((gain_T >= options.tau).tolist(), clusters), 100),
                "" if kind == KINDS[0] else shown(mean_interval(less_T, clusters=clusters)),
                "" if kind == KINDS[0] else shown(proportion_interval((less_T > 0).tolist(), clusters), 100),
            ]
        )
    print_table(
        f"gains under {options.model.name}, nats",
        [
            "rationale",
            "mean",
            "10/25/50/75/90 %",
            f"% at least {options.tau}",
            "its own − this",
            "% own is larger",
        ],
        rows,
        f"n = {len(gain_TK)} rationales of {len(set(clusters))} documents; {work.nodes:,} tokens now",
    )


if __name__ == "__main__":
    main()
