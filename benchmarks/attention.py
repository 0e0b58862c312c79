"""Tree attention on the filter's packed rows: our implementations against dense attention under a mask.

Both sides get the same tensors in one process: torch's `scaled_dot_product_attention` with the tree as a
boolean mask, which must look at every pair of places, and ours, which visit only blocks where something is
seen (`cpu` has no blocks: it gathers the keys that a group of queries sees, and its own memory is not in the
table). All results are compared with the first of their input; where one of ours is wrong the exit code is 1.

The limit: with depth(i) the ancestors of node i, the answer needs depth(i) + 1 scores and as many weighted
values, 4 N H Σ (depth(i) + 1) FLOPs, and 2.5 times more for the gradients. FLOP/s counts those alone,
whatever an implementation computes besides, and stands beside what one large matrix product reaches.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from measure import BLOCK, arguments, best_of, compilations, matmul_peak, print_json, print_table, visited
from torch.nn.functional import scaled_dot_product_attention

from rationalyst_jax.lm.attention import IMPLEMENTATIONS, tree_attention
from rationalyst_jax.lm.trees.tree import TokenTree, build_tree, chain, pack
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.prompts.prompt import load_prompts

REAL_ROW, LONG_ROW = 2048, 1024  # rows of real documents have this length, those of long ones a multiple
RATIONALES = (2, 8, 32)
# How far a result may be from the first one, in parts of its norm: rounding, but no wrong mask.
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    documents, characters: how many long documents of what length. row_length: rows of long documents are at
    least this long. matmul: size of the matrix product that shows what the machine can do.
    """

    dtype: str
    heads: int
    kv_heads: int
    head_dim: int
    documents: int
    characters: int
    matmul: int
    runs: int
    row_length: int = 0


SMALL = Sizes("float32", heads=8, kv_heads=2, head_dim=64, documents=2, characters=8000, matmul=2048, runs=3)
LLAMA_3_8B = Sizes(
    "bfloat16", heads=32, kv_heads=8, head_dim=128, documents=4, characters=16000, matmul=8192, runs=10
)
SIZES = {"cpu": SMALL, "gpu": LLAMA_3_8B, "tpu": LLAMA_3_8B}


@dataclass(frozen=True)
class Input:
    """Trees packed in rows. nodes: places that hold one; pairs: (node, itself or an ancestor)."""

    name: str
    size_BT: np.ndarray
    nodes: int
    pairs: int
    plain: bool = False

    @property
    def filled(self) -> float:
        return self.nodes / self.size_BT.size


class Tensors(NamedTuple):
    """Queries, keys, values, the gradient of the output, and the trees."""

    q_BTNH: Array
    k_BTKH: Array
    v_BTKH: Array
    dout_BTNH: Array
    size_BT: Array


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One way through an implementation; temporary memory and compilations where XLA tells them."""

    direction: str
    seconds: float
    temporary_mib: float | None = None
    compilations: int | None = None


@dataclass(frozen=True, kw_only=True)
class Measured(Pass):
    """A row of the table: what an implementation did on an input, counted in nodes and in what is seen."""

    input: str
    by: str
    tokens_per_s: float
    flops_per_s: float
    of_matmul: float


# Each pass of an implementation with the arrays it made: output, then gradients of q, k and v.
Passes = Iterator[tuple[Pass, Sequence[Array]]]
# Runs its passes on tensors, each so many times.
Contender = Callable[[Tensors, int], Passes]


# ---- Inputs ----


def packed(name: str, trees: Sequence[TokenTree], row_length: int, plain: bool = False) -> Input:
    """Trees in as few rows as they fit in."""
    rows = pack(trees, row_length)
    pairs = sum(int(tree.position.sum()) + len(tree) for tree in trees)
    return Input(name, rows.subtree_size_RT, sum(map(len, trees)), pairs, plain)


def inputs(sizes: Sizes) -> list[Input]:
    """Real documents, long ones with few and many rationales, and a row that never branches."""
    # Not for who takes only the contenders from here: these need all that mining needs.
    from documents import filter_groups, long_documents, real_documents, shared_data

    shared = shared_data()
    tokenizer = load_tokenizer(shared / "llama3_tokenizer")
    prompts = load_prompts("llama3")

    def trees(documents: list[list[Any]]) -> list[TokenTree]:
        groups = filter_groups(documents, tokenizer, prompts)
        return [build_tree([pair.context + pair.continuation for pair in group])[0] for group in groups]

    made = [packed("real documents", trees(real_documents(shared)), REAL_ROW)]
    length = 0
    for rationales in RATIONALES:
        long = trees(long_documents(shared, rationales, sizes.documents, sizes.characters))
        length = -(-max(sizes.row_length, *map(len, long)) // LONG_ROW) * LONG_ROW
        made.append(packed(f"long, {rationales} rationales", long, length))
    return [*made, packed("one plain row", [chain(range(length))], length, plain=True)]


def draw(one: Input, sizes: Sizes) -> Tensors:
    """Normally distributed numbers."""
    shape = one.size_BT.shape
    queries = (*shape, sizes.heads, sizes.head_dim)
    keys = (*shape, sizes.kv_heads, sizes.head_dim)
    seeds = jax.random.split(jax.random.key(0), 4)
    q, k, v, dout = (
        jax.random.normal(seed, like, sizes.dtype)
        for seed, like in zip(seeds, (queries, keys, keys, queries), strict=True)
    )
    return jax.block_until_ready(Tensors(q, k, v, dout, jnp.asarray(one.size_BT)))


# ---- Contenders ----


def in_jax(attend: Callable[[Array, Array, Array, Array], Array], x: Tensors, runs: int) -> Passes:
    """Passes of an attention on JAX arrays `[B, T, heads, H]` and subtree sizes."""

    def forward(q, k, v, dout, size):
        return (attend(q, k, v, size),)

    def backward(q, k, v, dout, size):
        out, gradients = jax.vjp(lambda q, k, v: attend(q, k, v, size), q, k, v)
        return out, *gradients(dout)

    for direction, work in (("forward", forward), ("forward + backward", backward)):
        with compilations() as compiled:
            program = jax.jit(work).lower(*x).compile()
            seconds, made = best_of(runs, lambda program=program: jax.block_until_ready(program(*x)))
        memory = program.memory_analysis()
        step = Pass(
            direction=direction,
            seconds=seconds,
            temporary_mib=memory and memory.temp_size_in_bytes / 2**20,
            compilations=len(compiled),
        )
        yield step, made


def in_torch(attend: Callable[..., torch.Tensor], x: Tensors, runs: int) -> Passes:
    """Passes of an attention on torch tensors `[B, heads, T, H]` and a mask `[B, 1, T, T]`."""
    q, k, v, dout = (to_torch(array) for array in x[:4])
    size_BT = torch.from_dlpack(x.size_BT)
    place_T = torch.arange(size_BT.shape[1], device=size_BT.device)
    distance_TS = place_T[:, None] - place_T
    mask_B1TS = ((distance_TS >= 0) & (distance_TS < size_BT[:, None, :]))[:, None]
    for leaf in (q, k, v):
        leaf.requires_grad_()

    def forward():
        with torch.no_grad():
            return finished(attend(q, k, v, mask_B1TS))

    def backward():
        out = attend(q, k, v, mask_B1TS)
        return finished(out.detach(), *torch.autograd.grad(out, (q, k, v), dout))

    for direction, work in (("forward", forward), ("forward + backward", backward)):
        seconds, made = best_of(runs, work)
        yield Pass(direction=direction, seconds=seconds), [from_torch(tensor) for tensor in made]


def to_torch(array: Array) -> torch.Tensor:
    """`[B, T, heads, H]` on the device where it is, laid out as torch likes it best."""
    return torch.from_dlpack(array).transpose(1, 2).contiguous()


def from_torch(tensor: torch.Tensor) -> Array:
    """And back."""
    return jnp.from_dlpack(tensor.transpose(1, 2).contiguous())


def finished(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same tensors, once they are computed."""
    if tensors[0].is_cuda:
        torch.cuda.synchronize()
    return tensors


def masked(q_BNTH, k_BKTH, v_BKTH, mask_B1TS):
    return scaled_dot_product_attention(q_BNTH, k_BKTH, v_BKTH, attn_mask=mask_B1TS, enable_gqa=True)


def masked_repeated(q_BNTH, k_BKTH, v_BKTH, mask_B1TS):
    """Keys and values once for every query head: fused kernels take these where grouped heads fall back."""
    k_BNTH, v_BNTH = (x.repeat_interleave(q_BNTH.shape[1] // x.shape[1], dim=1) for x in (k_BKTH, v_BKTH))
    return scaled_dot_product_attention(q_BNTH, k_BNTH, v_BNTH, attn_mask=mask_B1TS)


def causal(q_BNTH, k_BKTH, v_BKTH, mask_B1TS):
    return scaled_dot_product_attention(q_BNTH, k_BKTH, v_BKTH, is_causal=True, enable_gqa=True)


def cudnn_causal(q_BTNH, k_BTKH, v_BTKH, size_BT):
    return jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, is_causal=True, implementation="cudnn")


def peers(platform: str, plain: bool) -> dict[str, Contender]:
    """Other people's attention on the same device; on a row without branches also what is made for those."""
    found: dict[str, Contender] = {}
    on_gpu = platform == "gpu" and torch.cuda.is_available()
    if platform == "cpu" or on_gpu:
        found["torch, mask"] = partial(in_torch, masked)
        if plain:
            found["torch, causal"] = partial(in_torch, causal)
    if on_gpu:
        found["torch, mask, heads repeated"] = partial(in_torch, masked_repeated)
        if plain:
            found["jax cudnn, causal"] = partial(in_jax, cudnn_causal)
    return found


def refusal(implementation: str, sizes: Sizes) -> str | None:
    """Why an implementation cannot run on this machine; None: it can."""
    q_BTNH, k_BTKH = (
        jax.ShapeDtypeStruct((1, BLOCK, heads, sizes.head_dim), sizes.dtype)
        for heads in (sizes.heads, sizes.kv_heads)
    )
    size_BT = jax.ShapeDtypeStruct((1, BLOCK), jnp.int32)
    attend = partial(tree_attention, implementation=implementation)
    try:
        jax.eval_shape(attend, q_BTNH, k_BTKH, k_BTKH, size_BT)
    except ValueError as error:
        return str(error)
    return None


# ---- Measuring ----


@jax.jit
def distance(made: Array, expected: Array) -> Array:
    """Norm of the difference, in parts of the norm of what is expected."""
    made = made.astype(jnp.float32)
    expected = expected.astype(jnp.float32)
    return jnp.linalg.norm((made - expected).ravel()) / jnp.linalg.norm(expected.ravel())


def compete(
    one: Input,
    contenders: dict[str, Contender],
    sizes: Sizes,
    peak: float,
    tell: Callable[[Measured], None] = lambda row: None,
) -> tuple[list[Measured], dict[str, str]]:
    """Rows of one input, each told as soon as it is there; and by contender why it has none, or not all."""
    x = draw(one, sizes)
    first: dict[str, Sequence[Array]] = {}
    rows: list[Measured] = []
    failed: dict[str, str] = {}
    for by, run in contenders.items():
        try:
            for step, made in run(x, sizes.runs):
                check(step.direction, made, first.setdefault(step.direction, made), sizes.dtype)
                flops = 4 * sizes.heads * sizes.head_dim * one.pairs * (1 if len(made) == 1 else 3.5)
                row = Measured(
                    **asdict(step),
                    input=one.name,
                    by=by,
                    tokens_per_s=one.nodes / step.seconds,
                    flops_per_s=flops / step.seconds,
                    of_matmul=flops / step.seconds / peak,
                )
                rows.append(row)
                tell(row)
        except Exception as error:  # whatever a kernel dies of, the others are still worth measuring
            reason = str(error).strip() or type(error).__name__
            failed[by] = reason.splitlines()[0]
    return rows, failed


def check(direction: str, made: Sequence[Array], expected: Sequence[Array], dtype: str) -> None:
    """Raises ValueError where results are further from the expected ones than rounding explains."""
    far = [float(distance(a, b)) for a, b in zip(made, expected, strict=True)]
    if not max(far) <= TOLERANCE[dtype]:  # a NaN is wrong too
        raise ValueError(f"wrong {direction}, by {', '.join(f'{d:.1e}' for d in far)} of the norm")


COLUMNS = ("by", "", "ms", "tokens/s", "GFLOP/s", "of matmul", "temporary MiB", "compiled")


def cells(row: Measured) -> list[str]:
    """What stands in `COLUMNS`."""
    return [
        row.by,
        row.direction,
        f"{row.seconds * 1e3:,.1f}",
        f"{row.tokens_per_s:,.0f}",
        f"{row.flops_per_s / 1e9:,.1f}",
        f"{row.of_matmul:.0%}",
        "–" if row.temporary_mib is None else f"{row.temporary_mib:,.0f}",
        "–" if row.compilations is None else str(row.compilations),
    ]


def best(rows: Sequence[Measured], mine: bool) -> float | None:
    """Tokens/s of forward and backward on real documents, by our or the other people's fastest."""
    rates = [
        row.tokens_per_s
        for row in rows
        if row.input == "real documents"
        and row.direction == "forward + backward"
        and (row.by in IMPLEMENTATIONS) == mine
    ]
    return max(rates, default=None)


def report(measured: Sequence[Measured], given: Sequence[Input], sizes: Sizes, peak: float) -> None:
    """Prints the table, a block of rows for each input."""
    lines: list[list[str] | None] = []
    for one in given:
        B, T = one.size_BT.shape
        about = [one.name, f"{B} x {T}", f"{one.filled:.0%}", f"{visited(one.size_BT):.0%}"]
        for row in measured:
            if row.input == one.name:
                lines.append(about + cells(row))
                about = [""] * len(about)
        lines.append(None)
    print_table(
        f"Tree attention on {jax.devices()[0].device_kind}: {sizes.dtype}, {sizes.heads} query and "
        f"{sizes.kv_heads} key-value heads of {sizes.head_dim}\n"
        f"matrix product of {sizes.matmul} x {sizes.matmul}: {peak / 1e9:,.0f} GFLOP/s",
        [*("input", "rows", "filled", "blocks"), *COLUMNS],
        lines,
        f"blocks: those of {BLOCK} x {BLOCK} in which something is seen, of all on and under the diagonal\n"
        "tokens/s, GFLOP/s: of nodes and of what they see, without padding and what is masked",
    )


def parse(usual: Sizes) -> tuple[Sizes, bool]:
    """The sizes to measure, and whether a line for machines is wanted."""
    parser = arguments(__doc__)
    parser.add_argument("--dtype", choices=TOLERANCE, default=usual.dtype)
    parser.add_argument("--heads", type=int, default=usual.heads, help="query heads")
    parser.add_argument("--kv-heads", type=int, default=usual.kv_heads)
    parser.add_argument("--head-dim", type=int, default=usual.head_dim)
    parser.add_argument("--documents", type=int, default=usual.documents, help="long documents of an input")
    parser.add_argument("--characters", type=int, default=usual.characters, help="of a long document")
    parser.add_argument("--row-length", type=int, default=0, help="rows of long documents at least this long")
    options = vars(parser.parse_args())
    wants_json = options.pop("json")
    return replace(usual, **options), wants_json


def main() -> None:
    # torch needs memory on a GPU as well: JAX must not take it all. Read when JAX first looks for devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.4")
    platform = jax.default_backend()
    sizes, wants_json = parse(SIZES[platform])
    try:
        given = inputs(sizes)
    except ValueError as error:
        raise SystemExit(str(error)) from None

    refused = {name: refusal(name, sizes) for name in IMPLEMENTATIONS}
    ours: dict[str, Contender] = {
        name: partial(in_jax, partial(tree_attention, implementation=name))
        for name, reason in refused.items()
        if reason is None
    }
    remarks = [reason for reason in refused.values() if reason]
    if not peers(platform, plain=False):
        remarks.append(f"no peer: torch {torch.__version__} does not run on this {platform}")
    peak = matmul_peak(sizes.dtype, sizes.matmul)
    measured: list[Measured] = []
    works = True
    for one in given:
        rows, failed = compete(one, peers(platform, one.plain) | ours, sizes, peak)
        measured += rows
        remarks += [f"{by} on {one.name}: {reason}" for by, reason in failed.items()]
        works = works and not failed.keys() & ours.keys()

    report(measured, given, sizes, peak)
    print("\n".join(remarks))
    rate = best(measured, mine=True)
    if wants_json and rate is not None:
        print_json("attention", "tokens/s", rate, best(measured, mine=False), rows=[*map(asdict, measured)])
    if not works:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
