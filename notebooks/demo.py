# ---
# jupyter:
#   colab:
#     provenance: []
#     toc_visible: true
#   kaggle:
#     accelerator: none
#     isGpuEnabled: false
#     isInternetEnabled: true
#     language: python
#     sourceType: notebook
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # RATIONALYST on the embedded world
#
# A language model writes short thoughts into texts. The thoughts that make the following text more likely are
# kept, a model is trained to write such thoughts, and it then helps another model choose its next step. That
# is [RATIONALYST](https://arxiv.org/abs/2410.01044). This notebook does all of it with a model of 0.8 million
# parameters that the package brings along. It needs no token and no download but the package, and it runs on
# any machine.
#
# On Colab: *File → Upload notebook*. On Kaggle: *File → Import notebook*, and turn *Internet* on. Then run
# all cells.

# %% [markdown]
# ## Install
#
# Where the installation changes a package that is in memory already, as on Colab, the kernel ends itself after
# this cell and starts again at once: **run all cells again** then. The second time nothing is installed. (Kaggle's
# *Save & Run All* does not start it again: run the cells in the editor there.)

# %%
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = "rationalyst_jax{extra}"  # or "WHEEL{extra}", or "rationalyst_jax{extra} @ git+https://ADDRESS" of a clone


def versions_in_memory() -> dict[str, str]:
    """What is installed now of the packages that this kernel has loaded."""
    return {name: importlib.metadata.version(name) for name in ("jax", "numpy") if name in sys.modules}


if importlib.util.find_spec("rationalyst_jax") is None:
    on_tpu = Path("/dev/vfio/0").exists() or Path("/dev/accel0").exists()
    extra = "[tpu]" if on_tpu else "[cuda12]" if shutil.which("nvidia-smi") else ""
    before = versions_in_memory()
    wanted = PACKAGE.format(extra=extra)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", wanted], check=True)
    if versions_in_memory() != before:
        os.kill(os.getpid(), 9)

# %% [markdown]
# ## Sizes
#
# The small run takes a few minutes, most of them for compiling. With `FULL = True` the figures are those of
# the package's documentation; on two CPU cores that takes a quarter of an hour.

# %%
FULL = False

DOCUMENTS = 1000 if FULL else 48
QUESTIONS = 500 if FULL else 12
RUN = Path(
    "rationalyst-demo" if FULL else "rationalyst-demo-small"
)  # a second run of a cell goes on where the first one was
RUN.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Documents and questions
#
# The world has people, things and small numbers. Some documents are wrong where their wording misleads: "12
# apples, 4 more than Ben has".

# %%
from rationalyst_jax.files.rows import write_rows
from rationalyst_jax.world.corpus import documents, questions

write_rows(RUN / "documents.jsonl", documents(0, DOCUMENTS))
write_rows(RUN / "questions.jsonl", questions(0, QUESTIONS, "test"))
print(next(iter(documents(0, 1)))["text"])

# %% [markdown]
# ## Mine
#
# Before each line of each document the model writes three thoughts. These cells call the functions that the
# commands call: `rationalyst mine --help` says the same of its options.

# %%
from rich.console import Console

from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.mine.config import AnnotateConfig, FilterConfig
from rationalyst_jax.pipeline.mine import mine
from rationalyst_jax.pipeline.models import Models
from rationalyst_jax.prompts.prompt import load_prompts
from rationalyst_jax.report.progress import track, track_steps

prompts = load_prompts("world")
models = Models(EngineConfig())
console = Console()

annotate = AnnotateConfig(method="insert", places="line", candidates=3, max_rationale_tokens=32, block=128)
with track(console, "documents annotated") as progress:
    mined, _ = mine(
        RUN / "documents.jsonl", "world", models, prompts, annotate, RUN / "mine", progress=progress
    )
mined

# %% [markdown]
# ## Filter
#
# A thought is kept where it makes the text after it at least 0.1 nats more likely to the same model.

# %%
from rationalyst_jax.mine.store import read_filtered
from rationalyst_jax.pipeline.filter import filter_rationales

judged = FilterConfig(tau=0.1, suppress=("<BOT>",), row_length=512)
kept = RUN / "mine" / "filtered.parquet"
with track(console, "rationales scored") as progress:
    filtered, _ = filter_rationales(
        RUN / "mine" / "triples.parquet", "world", models, prompts, judged, kept, progress=progress
    )
print(f"{filtered.kept} of {filtered.rationales} kept")
for one in sorted(read_filtered(kept), key=lambda one: -(one.gain or 0))[:5]:
    print(f"{one.gain:+.2f} nats: {one.rationale}  ->  {one.following.splitlines()[0]}")

# %% [markdown]
# ## Train

# %%
from rationalyst_jax.pipeline.train import train
from rationalyst_jax.train.config import TrainConfig

settings = TrainConfig(
    steps=80 if FULL else 20,
    batch_examples=16,
    row_length=192,
    microbatch_rows=6,
    peak_learning_rate=1e-3,
    save_every=20,
    validate_every=20,
)
with track_steps(console) as (progress, note):
    trained = train(kept, "world", models, prompts, settings, RUN / "train", progress=progress, note=note)
trained

# %% [markdown]
# ## Guide
#
# The agent proposes three steps at a time. `likelihood` takes the one that the agent itself finds most
# likely; `implicit` takes the one that is most likely after the trained model's thought.

# %%
from rationalyst_jax.pipeline.reason import Cast, reason
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.tasks.benchmarks import task_named

task = task_named("gsm8k")  # the questions have its format
traces = {}
for strategy in ("likelihood", "implicit"):
    how = ReasonConfig(
        strategy=strategy,
        max_steps=10,
        max_step_tokens=32,
        max_rationale_tokens=32,
        suppress=("<BOT>", "<|copy|>"),
    )
    cast = Cast("world", RUN / "train" / "hf" if strategy == "implicit" else None)
    traces[strategy] = [RUN / f"{strategy}.jsonl"]
    with track(console, f"questions ({strategy})") as progress:
        reason(
            RUN / "questions.jsonl", task, cast, models, prompts, how, traces[strategy][0], progress=progress
        )
models.close()

# %% [markdown]
# ## Evaluate, and look
#
# Accuracies with their 95 % intervals, and the paired difference. Few questions say little: the intervals
# tell how little.

# %%
from rationalyst_jax.pipeline.evaluate import evaluate
from rationalyst_jax.report.grades import compared_table, grades_table

found = evaluate(task, RUN / "questions.jsonl", traces, ["likelihood"])
console.print(grades_table(task, {name: (one.accuracy, one.flexible) for name, one in found.items()}))
console.print(compared_table("likelihood", {"implicit": found["implicit"].versus["likelihood"]}))

# %% [markdown]
# The page of the run: choose *Questions*, and *flipped* to see where guidance changed an answer.

# %%
from rationalyst_jax.pipeline.report import report_traces
from rationalyst_jax.report.notebook import PageFrame

report_traces(task, RUN / "questions.jsonl", traces, RUN / "report.html")
PageFrame(RUN / "report.html")
