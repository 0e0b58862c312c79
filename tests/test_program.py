"""What is read from compiled programs, against tiny programs whose exchanges are known."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from rationalyst_jax.lm.devices.chips import CHIPS
from rationalyst_jax.lm.devices.sharding import TENSOR, by_row, make_mesh, shard_weights
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.trees.likelihood import Batch, score_rows
from rationalyst_jax.plan.program import (
    Collective,
    ProgramMemory,
    by_kind,
    collectives,
    collectives_of,
    memory,
    time_floor,
)

L, N = 5, 64  # layers; floats of each chip's part


def compiled(function, donate=()):
    """A function of N floats of each chip, on eight."""
    mesh = jax.make_mesh((8,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    parts = PartitionSpec("i")
    program = jax.shard_map(function, mesh=mesh, in_specs=parts, out_specs=parts, check_vma=False)
    array = jax.ShapeDtypeStruct((8 * N,), jnp.float32, sharding=NamedSharding(mesh, parts))
    return jax.jit(program, donate_argnums=donate).lower(array).compile()


@pytest.mark.parametrize(
    ("exchange", "kind", "received"),
    [
        (lambda x: jax.lax.psum(x, "i"), "all-reduce", 2 * 7 / 8 * N * 4),
        (lambda x: jax.lax.all_gather(x, "i").sum(0), "all-gather", 7 * N * 4),
        (lambda x: jax.lax.psum_scatter(x, "i", tiled=True), "reduce-scatter", 7 / 8 * N * 4),
        (lambda x: jax.lax.all_to_all(x.reshape(8, -1), "i", 0, 0).reshape(-1), "all-to-all", 7 / 8 * N * 4),
        (lambda x: jax.lax.ppermute(x, "i", [(i, i ^ 1) for i in range(8)]), "collective-permute", N * 4),
    ],
)
def test_each_kind_of_exchange_has_its_bytes(exchange, kind, received):
    [found] = collectives(compiled(exchange))
    assert (found.kind, found.count, found.received) == (kind, 1, received)
    assert found.group == (2 if kind == "collective-permute" else 8)


def layers(turns):
    """A sum over all chips in each turn of a loop."""
    return lambda x: jax.lax.scan(lambda x, _: (jax.lax.psum(jnp.sin(x), "i"), None), x, length=turns)[0]


def test_what_happens_in_a_loop_counts_at_every_turn():
    assert collectives(compiled(layers(L))) == [Collective("all-reduce", L, 448, 8)]


def test_loops_in_loops_multiply():
    def microbatches(x):
        return jax.lax.fori_loop(0, 3, lambda i, x: layers(L)(x) + jax.lax.all_gather(x, "i").sum(0), x)

    found = collectives(compiled(microbatches))
    assert by_kind(found) == {"all-reduce": (3 * L, 3 * L * 448), "all-gather": (3, 3 * 7 * N * 4)}


@pytest.mark.parametrize("turns", [1, 7])
def test_a_loop_of_unknown_length_turns_as_often_as_one_says(turns):
    def microbatches(x):
        return jax.lax.fori_loop(0, x[0].astype(int), lambda i, x: layers(L)(x), x)

    found = collectives(compiled(microbatches), unknown_trips=turns)
    assert by_kind(found)["all-reduce"] == (turns * L, turns * L * 448)


def test_groups_of_one_exchange_nothing():
    mesh = make_mesh(8, 1, 1, jax.devices())
    alone = jax.shard_map(
        lambda x: jax.lax.psum(x, TENSOR), mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec()
    )
    assert collectives(jax.jit(alone).lower(jnp.ones(8)).compile()) == []


def test_donated_arguments_need_no_second_place():
    def memories(donate):
        return memory(compiled(lambda x: 2 * x, donate=donate))

    kept, donated = memories(()), memories((0,))
    assert (kept.arguments, kept.outputs, kept.aliased) == (4 * N, 4 * N, 0)
    assert (donated.aliased, donated.peak - donated.temporary - donated.code) == (4 * N, 4 * N)
    assert kept.peak == 8 * N + kept.temporary + kept.code


def test_the_slowest_resource_decides_the_floor():
    found = [Collective("all-gather", 2, 10**11, 8), Collective("all-reduce between slices", 1, 10**15, 2)]
    floor = time_floor(CHIPS["v5e"], 197e12 / 2, ProgramMemory(819 * 10**8, 0, 0, 0, 0), found)
    assert (floor.compute, floor.memory, floor.communication, floor.seconds) == (0.5, 0.1, 1.0, 1.0)


# ---- What other compilers write ----


def module(instructions: str, computations: str = "") -> str:
    """The text of a module for four chips."""
    return f"""HloModule m, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {{
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}}

{computations}

ENTRY %main (p: f32[8]) -> f32[8] {{
{instructions}
}}
"""


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1},{2,3}}", 2),
        ("{}", 4),
        ("[2,8]<=[4,4]T(1,0)", 8),
        ("mesh['axis_0'=2,'axis_1'=8] {'axis_1'}", 8),
        ("mesh['axis_0'=2,'axis_1'=8] {'axis_0','axis_1':(2)4}", 8),
    ],
)
def test_every_way_to_write_groups_is_read(groups, size):
    [found] = collectives_of(
        module(f"  %a = f32[8]{{0}} all-reduce(%p), replica_groups={groups}, to_apply=%add")
    )
    assert (found.group, found.received) == (size, round(2 * (size - 1) / size * 32))


def test_an_exchange_in_two_halves_counts_once():
    found = collectives_of(
        module(
            """  %s = (f32[8]{0}, f32[32]{0}) all-gather-start(%p), replica_groups={{0,1,2,3}}, dimensions={0}
  %d = f32[32]{0} all-gather-done(%s)
  %t = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1},{1,0}}
  %e = f32[8]{0} collective-permute-done(%t)
  %r = ((f32[32]{0}), f32[8]{0}) async-start(%d), calls=%scatter
  %u = ((f32[32]{0}), f32[8]{0}) async-update(%r), calls=%scatter
  ROOT %o = f32[8]{0} async-done(%u), calls=%scatter""",
            """%scatter (q: f32[32]) -> f32[8] {
  ROOT %x = f32[8]{0} reduce-scatter(%q), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
}""",
        )
    )
    assert by_kind(found) == {
        "all-gather": (1, 3 * 32),
        "reduce-scatter": (1, 3 * 32),
        "collective-permute": (1, 32),
    }


def test_an_exchange_that_a_tpu_spreads_over_products_counts_once():
    part = "%g{n} = f32[32]{{0}} all-gather(%q), replica_groups={{{{0,1,2,3}}}}, "
    part += 'frontend_attributes={{chain_id="0"}}, backend_config={{"async_collective_fusion_config":{{}}}}'
    mark = '  ROOT %c{n} = f32[32]{{0}} custom-call(%g{n}), custom_call_target="AsyncCollective{what}"'
    bodies = [
        part.format(n=n) + "\n" + mark.format(n=n, what=w) for n, w in enumerate(["Start", "Step", "Done"])
    ]
    names = ["%started", "%async_collective_fusion.1", "%done"]
    computations = [
        f"{name} (q: f32[8]) -> f32[32] {{\n  {body}\n}}" for name, body in zip(names, bodies, strict=True)
    ]
    calls = [f"  %f{n} = f32[32]{{0}} fusion(%p), kind=kCustom, calls={name}" for n, name in enumerate(names)]
    found = collectives_of(module("\n".join(calls), "\n\n".join(computations)))
    assert found == [Collective("all-gather", 1, 96, 4)]


def test_a_sum_of_which_a_part_is_kept_is_a_reduce_scatter():
    body = """%all-reduce-scatter.2.clone (q: f32[32]) -> f32[8] {
  %a = f32[32]{0} all-reduce(%q), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %d = f32[8]{0} dynamic-slice(%a, %i), dynamic_slice_sizes={8}
}"""
    found = collectives_of(
        module("  %f = f32[8]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.2.clone", body)
    )
    assert found == [Collective("reduce-scatter", 1, 96, 4)]


@pytest.mark.parametrize(("step", "turns"), [(1, 8), (2, 4), (3, 3)])
def test_a_loop_may_count_by_more_than_one(step, turns):
    loop = f"""%body (s: (f32[8], u32[])) -> (f32[8], u32[]) {{
  %s = (f32[8]{{0}}, u32[]) parameter(0)
  %i = u32[]{{:T(128)}} get-tuple-element(%s), index=1
  %x = f32[8]{{0}} get-tuple-element(%s), index=0
  %by = u32[] constant({step})
  %j = u32[]{{:T(128)}} add(%i, %by), metadata={{op_name="add"}}
  %y = f32[8]{{0}} collective-permute(%x), source_target_pairs={{{{0,1}},{{1,0}}}}
  ROOT %t = (f32[8]{{0}}, /*index=1*/u32[]) tuple(%y, %j)
}}

%condition (c: (f32[8], u32[])) -> pred[] {{
  %limit = u32[]{{:T(128)}} constant(8)
  %c = (f32[8]{{0}}, u32[]) parameter(0)
  %k = u32[] get-tuple-element(%c), index=1
  ROOT %less = pred[] compare(%k, %limit), direction=LT
}}"""
    found = collectives_of(
        module("  %w = (f32[8]{0}, u32[]) while(%p), condition=%condition, body=%body", loop)
    )
    assert by_kind(found) == {"collective-permute": (turns, turns * 32)}


# ---- TPUs that are not there ----


@pytest.mark.aot
def test_the_filter_sums_activations_twice_a_layer_and_gathers_no_weight(tpu_topology):
    mesh = make_mesh(1, 1, 8, tpu_topology("v5e:2x4"))
    B = 1
    T = 2048
    config = LlamaConfig.llama3_8b()
    model = nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    graph, weights = nnx.split(model)

    def placed(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    weights = jax.tree.map(placed, weights, shard_weights(weights, mesh))
    row: Any = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=by_row(mesh))
    batch: Any = Batch(row, row, row, row, row)
    program = score_rows.lower(graph, weights, batch, (), mesh).compile()

    [activations, *small] = collectives(program)
    around = 2 * 7 * B * T // 8
    per_layer, embedding = 2, 1
    sums = embedding + per_layer * config.num_layers
    assert activations == Collective("all-reduce", sums, around * config.hidden_size * 2, 8)
    # Maximum, sum and target's logit of each place.
    assert {c.kind for c in small} == {"all-reduce"} and sum(c.total for c in small) == 3 * around * 4
    assert memory(program).peak < CHIPS["v5e"].memory


@pytest.mark.aot
@pytest.mark.usefixtures("tpu_topology")
def test_gradients_are_summed_between_slices_by_the_hosts():
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2).devices
    mesh = make_mesh(2, 4, 1, devices)
    D, F, B = 1024, 512, 64

    def array(shape, *axes):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    gradient = jax.jit(
        jax.grad(lambda w_DF, x_BD: ((x_BD @ w_DF) ** 2).sum()),
        out_shardings=NamedSharding(mesh, PartitionSpec("fsdp")),
    )
    found = collectives(gradient.lower(array((D, F), "fsdp"), array((B, D), ("replica", "fsdp"))).compile())
    assert Collective("all-reduce between slices", 1, D // 4 * F * 2, 2) in found
    assert by_kind(found)["all-gather"] == (1, 3 / 4 * D * F * 2)
