"""Token sharing of insertion: how much of what is sent does the engine compute?

Real texts are annotated as `rationalyst mine --annotate.method insert` annotates them, with the prompts and
the tokenizer of Llama 3. Each place is a request of its own, whose context is the text so far. The model is
tiny and random, for nothing is timed: what the engine finds in its cache depends on the tokens alone.
"""

import json
import tempfile
from pathlib import Path

from documents import long_texts, shared_data
from flax import nnx
from measure import arguments
from rich.console import Console
from rich.table import Table

from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.mine.annotate import annotate, read_usage
from rationalyst_jax.mine.config import AnnotateConfig
from rationalyst_jax.mine.documents import Insertion
from rationalyst_jax.prompts.prompt import load_prompts
from rationalyst_jax.report.progress import track
from rationalyst_jax.roles.role import Role

SHAPE = LlamaConfig(128256, 8, 8, 1, 2, 1, 4, max_position_embeddings=8192, eos_token_id=128001)
WAYS = {
    "lines": {"places": "line"},
    "sentences": {"places": "sentence"},
    "sentences, K = 3": {"places": "sentence", "candidates": 3},
    "8 sentences": {"places": "sentence", "most_places": 8},
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--characters", type=int, default=8_000)
    parser.add_argument("--tokens", type=int, default=8, help="tokens of a rationale")
    options = parser.parse_args()

    shared = shared_data()
    console = Console()
    documents = long_texts(shared, options.texts, options.characters)
    tokenizer = load_tokenizer(shared / "llama3_tokenizer")
    prompts = load_prompts("llama3")
    role = Role(Engine(Llama(SHAPE, rngs=nnx.Rngs(0)), tokenizer), tokenizer)
    once = sum(role.count_tokens(document.text) for document in documents)

    results = {}
    for name, way in WAYS.items():
        config = AnnotateConfig(
            "insert", max_document_tokens=8_000, max_rationale_tokens=options.tokens, **way
        )
        with tempfile.TemporaryDirectory() as folder, track(console, name) as progress:
            file = Path(folder) / "annotations.jsonl"
            annotated = annotate(documents, role, prompts, config, file, progress)
            used = read_usage(file)
        results[name] = {
            "places": sum(len(one.places) for one in annotated if isinstance(one, Insertion)),
            "sent": used.prefilled + used.cached,
            "computed": used.prefilled,
            "scored": used.scored,
            "written": used.generated,
        }

    title = f"{len(documents)} texts of {options.characters} characters: {once} tokens, each once"
    table = Table(title=title, title_justify="left")
    table.add_column("before")
    for heading in ("places", "sent", "computed", "ratio", "scored", "written"):
        table.add_column(heading, justify="right")
    for name, of in results.items():
        ratio = f"{of['sent'] / of['computed']:.1f}"
        counts = (of["places"], of["sent"], of["computed"], ratio, of["scored"], of["written"])
        table.add_row(name, *map(str, counts))
    console.print(table)
    if options.json:
        print(json.dumps({"texts": len(documents), "tokens": once, **results}))


if __name__ == "__main__":
    main()
