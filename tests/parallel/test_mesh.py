import jax
import pytest

from moe.parallel.mesh import AXES, MeshShape, make_mesh


def test_by_default_all_devices_replicate_the_parameters():
  assert MeshShape().sizes(8) == (1, 8, 1, 1, 1, 1)


@pytest.mark.parametrize(
  ('shape', 'sizes'),
  [
    (MeshShape(expert=4), (1, 2, 1, 4, 1, 1)),
    (MeshShape(data=1, fsdp=-1, expert=2), (1, 1, 4, 2, 1, 1)),
    (MeshShape(data=2, expert=2, model=2), (1, 2, 1, 2, 1, 2)),
    (MeshShape(data=1, context=-1), (1, 1, 1, 1, 8, 1)),
  ],
)
def test_minus_one_takes_the_devices_that_are_left(shape, sizes):
  assert shape.sizes(8) == sizes


@pytest.mark.parametrize(
  ('shape', 'fragment'),
  [
    (MeshShape(data=3), 'MESH_DATA=3'),
    (MeshShape(expert=3), 'MESH_EXPERT=3'),
    (MeshShape(expert=16), 'MESH_EXPERT=16'),
    (MeshShape(data=2), 'MESH_DATA=2'),
    (MeshShape(data=0), 'MESH_DATA=0'),
    (MeshShape(data=8, fsdp=0), 'MESH_FSDP=0'),
    (MeshShape(data=-2, model=-4), 'MESH_MODEL=-4'),
    (MeshShape(data=-1, fsdp=-1), 'MESH_FSDP=-1'),
  ],
)
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(shape, fragment):
  with pytest.raises(ValueError, match='multiply to the 8 devices') as error:
    shape.sizes(8)
  assert fragment in str(error.value)


def test_every_device_is_in_the_mesh_once_and_axes_keep_their_order():
  mesh = make_mesh(MeshShape(data=2, expert=4))
  assert mesh.axis_names == AXES
  assert tuple(mesh.shape.values()) == (1, 2, 1, 4, 1, 1)
  assert set(mesh.devices.flat) == set(jax.devices())
  assert mesh.devices.size == 8


def test_a_mesh_can_use_some_of_the_devices():
  mesh = make_mesh(MeshShape(expert=2), jax.devices()[4:6])
  assert mesh.shape['expert'] == 2
  assert list(mesh.devices.flat) == jax.devices()[4:6]


@pytest.mark.parametrize(
  ('shape', 'num_devices', 'sizes'),
  [
    # The run's own mesh fits the devices.
    (MeshShape(data=2, expert=4), 8, (1, 2, 1, 4, 1, 1)),
    (MeshShape(data=1, fsdp=-1, expert=4), 8, (1, 1, 2, 4, 1, 1)),
    # There are fewer devices: the expert axis takes them first.
    (MeshShape(data=2, fsdp=1, expert=4), 1, (1, 1, 1, 1, 1, 1)),
    (MeshShape(data=1, fsdp=2, expert=4), 4, (1, 1, 1, 4, 1, 1)),
    (MeshShape(data=1, fsdp=1, expert=6), 4, (1, 2, 1, 2, 1, 1)),
    # There are more devices: the axis of -1 takes them, or else data.
    (MeshShape(data=1, fsdp=-1, expert=2), 16, (1, 1, 8, 2, 1, 1)),
    (MeshShape(data=1, fsdp=2, model=2), 16, (1, 4, 2, 1, 1, 2)),
    # Tokens are written one at a time, so context gets no devices.
    (MeshShape(data=2, context=4), 8, (1, 8, 1, 1, 1, 1)),
  ],
)
def test_a_mesh_is_fitted_to_the_devices_at_hand(shape, num_devices, sizes):
  assert shape.fitted(num_devices).sizes(num_devices) == sizes
