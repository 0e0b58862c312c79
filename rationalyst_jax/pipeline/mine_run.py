"""Mining over shards, in worker processes: what `rationalyst mine run` does."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from rationalyst_jax.files.interruption import interrupted_by_sigterm
from rationalyst_jax.files.rows import check_outside, read_file
from rationalyst_jax.files.whole import write_json
from rationalyst_jax.lm.weights.encoder import open_encoder
from rationalyst_jax.lm.weights.tokenizer import marker_ids
from rationalyst_jax.mine.prefilter import cutter_of
from rationalyst_jax.mine.references import read_references, references_digest
from rationalyst_jax.mine.shards import find_shards
from rationalyst_jax.pipeline.clusters import Ranks, check_executor, do_on_cluster
from rationalyst_jax.pipeline.markers import StageStatus, status
from rationalyst_jax.pipeline.mine import check_annotator
from rationalyst_jax.pipeline.mine_config import MineRunConfig
from rationalyst_jax.pipeline.mine_stages import BAD_ROWS, MERGED, OF_SOURCE, Tools, open_tools, stages
from rationalyst_jax.pipeline.run_dir import RunDir
from rationalyst_jax.pipeline.sharded import ShardedRun, perform
from rationalyst_jax.pipeline.workers import environments, supervise
from rationalyst_jax.prompts.prompt import check_prompts
from rationalyst_jax.report.mining import stages_table
from rationalyst_jax.report.progress import track
from rationalyst_jax.report.tables import counts_table
from rationalyst_jax.tasks.benchmarks import task_named
from rationalyst_jax.tasks.sources import questions_digest

_SHOWN = 5  # lines of a kind


def run(config: MineRunConfig, *, console: Console) -> list[StageStatus]:
    """Mines all shards, or goes on with a run that was stopped; gives what became of them.

    Raises ValueError for bad input, for a run directory made with other settings, while another process is at
    work in it, for a shard whose workers die again and again, for a cluster that is not there, and, when all
    others are done, where shards were refused; Interrupted after SIGTERM.
    """
    check_outside(Path(config.documents), Path(config.run_dir), ".")
    shards = _shards(Path(config.documents))
    here = config.executor == "here"
    places = environments(config.workers) if here else []
    if not here:
        check_executor(config.executor)
    with open_tools(config) as tools:
        settings = _settings(tools)  # finds what is wrong with models and prompts before anything is written
    path = Path(config.run_dir)
    first, *_, last = order = stages(config)
    with RunDir(path, settings, console), interrupted_by_sigterm():
        planned = partial(ShardedRun, path, shards, order, settings, losses=config.losses)
        opened = partial(open_tools, config)
        with track(console, "stages of shards") as progress, planned(progress=progress) as work:
            if here:
                supervise(work, opened, perform, places)
            else:
                ranks = Ranks(planned, opened, config.workers)
                do_on_cluster(work, ranks, config.executor, config.cluster, console)
        found = status(path)
        if not work.failed:
            write_json(path / "summary.json", {stage.name: asdict(stage) for stage in found})
        _say(config, found, console)
        _say_bad_rows(path / first.name, list(shards), console)
        if work.failed:
            told, *others = (f"{name}: {message}" for name, message in work.failed.items())
            _say_first(others, console)
            raise ValueError(f"{told}; what is done is kept, and the same command tries this again")
    merged = path / last.name / last.makes[MERGED]
    console.print(f"all rationales in {merged}, kept or not", highlight=False, markup=False, soft_wrap=True)
    return found


def _shards(documents: Path) -> dict[str, Path]:
    """Files of documents by the names of their folders in a run: a path's "/" is "+" there. Raises as
    `find_shards`, and ValueError for two files of one name."""
    shards: dict[str, Path] = {}
    for shard in find_shards(documents):
        name = shard.name.replace("/", "+")
        if name in shards:
            raise ValueError(
                f"{shard.path}: what is made of it has the name of what is made of {shards[name]}"
            )
        shards[name] = shard.path
    return shards


def _settings(tools: Tools) -> dict[str, Any]:
    """All that decides the results but the shards, as JSON values. Raises ValueError for a model that cannot
    be asked what it will be asked."""
    config = tools.config
    models = tools.models
    check_annotator(config.model, models, tools.prompts, config.annotate)
    scorer = models.checkpoint(tools.scorer)
    check_prompts(scorer.tokenizer, tools.prompts, ["follow", "follow_guided"])
    marker_ids(scorer.tokenizer, config.filter.suppress)
    settings = asdict(config) | {"prefilter": config.prefilter.decides()}
    for key in ("run_dir", "documents", "workers", "losses", "endpoint", "encoder", "executor", "cluster"):
        del settings[key]  # a run may be moved and go on
    if config.encoder is not None:
        how = config.prefilter
        sets = read_references(config.references, how.max_references, how.held_out, how.seed)
        settings["references"] = references_digest(sets)
        encoder = open_encoder(Path(config.encoder))
        cutter_of(encoder, how)
        settings["encoder"] = encoder.fingerprint
    against = config.against.items()
    settings["against"] = {name: questions_digest(task_named(name), source) for name, source in against}
    names = {"model": models.known(config.model).name, "scorer": scorer.fingerprint}
    return settings | names | {"prompts": tools.prompts.version}


def _say(config: MineRunConfig, found: Sequence[StageStatus], console: Console) -> None:
    """What became of documents and rationales, and which thresholds met no source."""
    console.print(stages_table({stage.name: asdict(stage) for stage in found}))
    for stage in found:
        counts = {name: n for name, n in stage.tally.counts.items() if n}
        if counts:
            console.print(counts_table(stage.name, counts))
    sources = {name.removeprefix(OF_SOURCE) for name in found[0].tally.counts if name.startswith(OF_SOURCE)}
    if unused := [source for source in config.filter.tau_by_source if source not in sources]:
        console.print(
            f"no document has source {', '.join(unused)}, which tau_by_source names",
            style="yellow",
            markup=False,
        )


def _say_bad_rows(folder: Path, shards: Sequence[str], console: Console) -> None:
    """The first bad rows, a line each."""
    files = [path for shard in shards if (path := folder / shard / BAD_ROWS).exists()]
    bad = [row["error"] for path in files for _, row in read_file(path)]
    _say_first([f"left out: {error}" for error in bad], console)


def _say_first(lines: Sequence[str], console: Console) -> None:
    for line in lines[:_SHOWN]:
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    if len(lines) > _SHOWN:
        console.print(f"and {len(lines) - _SHOWN} more like these", style="yellow")
