"""Meshes of TPUs that are not there: how their axes lie in the torus, and across slices."""

import math

import pytest
from jax.experimental import topologies

from rationalyst_jax.lm.devices.sharding import make_mesh

pytestmark = pytest.mark.aot


@pytest.mark.parametrize("name", ["v5e:4x4", "v6e:4x4", "v6e:2x4", "v5p:4x4x4"])
def test_every_division_of_a_slice_has_a_mesh(tpu_topology, name):
    devices = tpu_topology(name)
    n = len(devices)
    for tensor in (2**i for i in range(n.bit_length())):
        for replica in (1, 2):
            if math.gcd(n, replica * tensor) == replica * tensor:
                mesh = make_mesh(replica, n // replica // tensor, tensor, devices)
                assert {*mesh.devices.flat} == {*devices}


@pytest.mark.parametrize("within", [(1, 16, 1), (1, 4, 4), (2, 4, 2)])
@pytest.mark.usefixtures("tpu_topology")
def test_each_replica_lies_within_one_slice(within):
    description = topologies.get_topology_desc(platform="tpu", topology_name="v6e:4x4", num_slices=2)
    replica, fsdp, tensor = within
    mesh = make_mesh(2 * replica, fsdp, tensor, description.devices)
    slices = [{device.slice_index for device in part.flat} for part in mesh.devices]
    assert slices == [{0}] * replica + [{1}] * replica
    with pytest.raises(ValueError, match="replica 1 is not a multiple of 2 slices"):
        make_mesh(1, 32, 1, description.devices)
