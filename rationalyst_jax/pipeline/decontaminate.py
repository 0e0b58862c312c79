"""The stage `decontaminate`: documents that hold a question of an evaluation set go."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from rationalyst_jax.files.prepared import Source
from rationalyst_jax.files.rows import check_outside
from rationalyst_jax.files.settings import claimed
from rationalyst_jax.files.whole import write_json
from rationalyst_jax.mine.config import DecontaminateConfig
from rationalyst_jax.mine.decontaminate import Contamination, QuestionIndex, contamination, judge
from rationalyst_jax.mine.shards import Outcomes, find_shards, read_verdicts
from rationalyst_jax.pipeline.shards import DOCUMENTS, DONE, VERDICTS, divide_shards, fingerprints
from rationalyst_jax.tasks.benchmarks import task_named
from rationalyst_jax.tasks.sources import questions_digest, read_questions


def decontaminate(
    documents: Path,
    against: Mapping[str, Source],
    config: DecontaminateConfig,
    out: Path,
    *,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
) -> tuple[Outcomes, dict[str, Contamination]]:
    """Drops documents that hold a question of a task; how many documents of each source stayed or went, and
    why, and what was found of each task.

    against: the questions of tasks by their names. Reads a file or the shards of a folder, and writes a
    file for each in `out/documents` (those that stay) and `out/verdicts` (what each document meets that meets
    any question), and the counts to `out/decontaminate.json`. A killed run continues. `progress` is told how
    many shards are done. Raises ValueError for a malformed row, an unknown task, work begun with other
    settings, questions or documents, and while another process is at this work.
    """
    check_outside(documents, out, DOCUMENTS, VERDICTS)
    shards = find_shards(documents)
    tasks = {name: task_named(name) for name in against}
    questions = {name: read_questions(task, against[name]) for name, task in tasks.items()}
    settings = {
        "decontaminate": asdict(config),
        "questions": {name: questions_digest(task, against[name]) for name, task in tasks.items()},
    }
    index = QuestionIndex(questions, config)
    with claimed(out / "decontaminate.config.json", settings, out / DONE):
        outcomes = divide_shards(
            shards,
            lambda _: lambda _, document: judge(document, index, config),
            fingerprints(shards),
            out,
            progress,
        )
        verdicts = (read_verdicts(out / VERDICTS / f"{shard.name}.jsonl") for shard in shards)
        found = contamination(chain.from_iterable(verdicts), questions, index)
        counts = {task: asdict(of_task) for task, of_task in found.items()}
        write_json(out / "decontaminate.json", {"settings": settings, "outcomes": outcomes, "tasks": counts})
    return outcomes, found
