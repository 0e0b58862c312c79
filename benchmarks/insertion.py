"""Token sharing of insertion: how much of what is sent does the engine compute?

Real texts are annotated as `rationalyst mine --annotate.method insert` annotates them, with the prompts and
the tokenizer of Llama 3. Each place is a request of its own, whose context is the text so far. Nothing is
timed: what is found in the cache depends on the tokens alone. So all texts are counted by an engine that
shares and counts but computes nothing (`plan/mining.py`). A few also run through the real one, with a tiny
random model, to show that both say the same.

With `--world N` the shipped model annotates N documents of the world in both ways instead, and what that
takes is told beside what `rationalyst plan --stage mine` expects.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from documents import long_texts, shared_data
from flax import nnx
from measure import arguments, print_table
from rich.console import Console

from rationalyst_jax.files.rows import read_rows
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.weights.hf import load_llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.mine.annotate import annotate, read_usage
from rationalyst_jax.mine.config import AnnotateConfig, FilterConfig
from rationalyst_jax.mine.documents import Annotated, Annotation, Document, Insertion, read_annotations
from rationalyst_jax.mine.parse import Rationale, parse
from rationalyst_jax.mine.places import find_places
from rationalyst_jax.plan.config import MiningAssumptions
from rationalyst_jax.plan.mining import CountingEngine, Method, MiningSettings, mining_cost
from rationalyst_jax.prompts.prompt import load_prompts
from rationalyst_jax.report.progress import track
from rationalyst_jax.roles.role import Role
from rationalyst_jax.roles.usage import Usage
from rationalyst_jax.world.checkpoint import checkpoint_path
from rationalyst_jax.world.corpus import documents as world_documents

SHAPE = LlamaConfig(128256, 8, 8, 1, 2, 1, 4, max_position_embeddings=8192, eos_token_id=128001)
WAYS: dict[str, dict[str, Any]] = {
    "lines": {"places": "line"},
    "sentences": {"places": "sentence"},
    "sentences, K = 3": {"places": "sentence", "candidates": 3},
    "8 sentences": {"places": "sentence", "most_places": 8},
}
COUNTS = ("requests", "sent", "computed", "sent / computed", "scored", "written")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--texts", type=int, default=100, help="texts that are counted")
    parser.add_argument(
        "--run", type=int, default=3, help="texts that run through an engine as well; 0: none"
    )
    parser.add_argument("--world", type=int, default=0, help="documents of the world, run and planned")
    parser.add_argument("--characters", type=int, default=8_000)
    parser.add_argument("--tokens", type=int, default=8, help="tokens of a rationale")
    options = parser.parse_args()
    if options.world:
        results = against_plan(options.world)
        if options.json:
            print(json.dumps(results))
        return

    shared = shared_data()
    tokenizer = load_tokenizer(shared / "llama3_tokenizer")
    counting = Role(CountingEngine(SHAPE, EngineConfig()), tokenizer)
    engine = Role(Engine(Llama(SHAPE, rngs=nnx.Rngs(0)), tokenizer), tokenizer)
    print_released(shared, counting)
    results = {}
    for how, role, texts in (
        ("run", engine, options.run),
        ("counted", counting, options.run),
        ("counted", counting, options.texts),
    ):
        if not texts:
            continue
        documents = long_texts(shared, texts, options.characters)
        taken = {name: takes(name, documents, role, options.tokens) for name in WAYS}
        once = sum(role.count_tokens(document.text) for document in documents)
        rows = [[name, *(f"{taken[name][count]:,}" for count in COUNTS)] for name in WAYS]
        title = f"{texts} texts of {options.characters} characters, {once:,} tokens: {how}"
        print_table(title, ["before", *COUNTS], rows)
        results[f"{how} {texts}"] = {"tokens": once, **taken}
    if options.json:
        print(json.dumps(results))


def takes(way: str, documents: Sequence[Document], role: Role, tokens: int) -> dict[str, float]:
    """What annotating the documents in a way takes, by COUNTS."""
    config = AnnotateConfig("insert", max_document_tokens=8_000, max_rationale_tokens=tokens, **WAYS[way])
    annotated, used = run(documents, role, "llama3", config)
    sent = used.prefilled + used.cached
    places = sum(len(one.places) for one in annotated if isinstance(one, Insertion))
    numbers = (places, sent, used.prefilled, round(sent / used.prefilled, 1), used.scored, used.generated)
    return dict(zip(COUNTS, numbers, strict=True))


def run(
    documents: Sequence[Document], role: Role, prompts: str, config: AnnotateConfig
) -> tuple[list[Annotated], Usage]:
    """What annotating writes, and what it takes."""
    with tempfile.TemporaryDirectory() as folder, track(Console(), config.method) as progress:
        file = Path(folder) / "annotations.jsonl"
        annotated = annotate(documents, role, load_prompts(prompts), config, file, progress)
        return annotated, read_usage(file)


def print_released(shared: Path, role: Role) -> None:
    """What the authors' rationales and annotated documents are like: the defaults of a plan's assumptions."""
    released = [row["rationale"] for _, row in read_rows(shared / "rationalyst" / "rationales.jsonl")]
    mean = sum(map(role.count_tokens, released)) / len(released)
    copies = read_annotations(shared / "rationalyst" / "extractor_output.jsonl")
    written = sum(len(parsed(one)) for one in copies)
    places = sum(len(find_places(one.document.text, "sentence")) for one in copies)
    print(
        f"{len(released)} released rationales have {mean:.1f} tokens, and {len(copies)} released copies ",
        end="",
    )
    print(f"{written} rationales at {places} places: {written / places:.2f}")


def parsed(one: Annotated) -> Sequence[Rationale]:
    return parse(one.document.text, one.output).rationales if isinstance(one, Annotation) else ()


def against_plan(count: int) -> dict[str, dict[str, float]]:
    """What both ways take of documents of the world, planned with the mean length of a rationale and the
    share of places that the runs had, and run."""
    base = checkpoint_path("world")
    tokenizer = load_tokenizer(base)
    llama = load_llama(base)
    role = Role(Engine(llama, tokenizer), tokenizer)
    documents = [Document(row["id"], row["text"], row["source"]) for row in world_documents(0, count)]
    places = sum(len(find_places(document.text, "line")) for document in documents)
    insert = AnnotateConfig("insert", places="line", candidates=3)
    copies, copying = run(documents, role, "world", insert.by("copy"))
    _, inserting = run(documents, role, "world", insert)
    copied = [role.count_tokens(rationale.text) for one in copies for rationale in parsed(one)]
    # An inserted rationale is ended by a token of its own.
    inserted = inserting.generated / (places * insert.candidates) - 1
    runs: dict[Method, tuple[Usage, MiningAssumptions]] = {
        "copy": (copying, MiningAssumptions(sum(copied) / len(copied), len(copied) / places)),
        "insert": (inserting, MiningAssumptions(inserted)),
    }
    print(
        f"an inserted rationale has {inserted:.2f} tokens, a copied one {sum(copied) / len(copied):.2f}, ",
        end="",
    )
    print(f"and copies have one at {len(copied) / places:.0%} of {places} places")
    settings = MiningSettings(insert, FilterConfig(), EngineConfig())
    known = (documents, llama.config, tokenizer, load_prompts("world"), settings)
    results = {}
    for method, (used, assumed) in runs.items():
        results[f"{method}, planned"] = counted(mining_cost(method, *known, assumed).usage)
        results[f"{method}, ran"] = counted(used)
    print_table(
        f"{count} documents of the world",
        ["", *results],
        [[name, *(f"{of[name]:,}" for of in results.values())] for name in counted(Usage())],
    )
    return results


def counted(used: Usage) -> dict[str, float]:
    return {
        "sent": used.prefilled + used.cached,
        "computed": used.prefilled,
        "written": used.generated,
        "GFLOP of annotating": round(used.flops / 1e9, 2),
    }


if __name__ == "__main__":
    main()
