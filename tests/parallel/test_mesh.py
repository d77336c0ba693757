import dataclasses
import math

import jax
import numpy as np
import pytest

from moe.parallel.mesh import AXES, MeshShape, count_slices, make_mesh


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
    (MeshShape(data=3), 'needs 3 devices, got 8 for MESH_DATA=3'),
    (MeshShape(expert=3), 'needs a multiple of 3 devices, got 8'),
    (MeshShape(expert=16), 'add --gin.MESH_EXPERT=8 for'),
    (MeshShape(data=2), 'add --gin.MESH_DATA=8 for'),
    (MeshShape(expert=16), 'JAX_NUM_CPU_DEVICES=16'),
  ],
)
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(shape, fragment):
  with pytest.raises(ValueError, match=fragment):
    shape.sizes(8)


@pytest.mark.parametrize('num_devices', [1, 2, 6])
def test_what_a_refusal_says_to_set_fits(num_devices):
  with pytest.raises(ValueError, match='the mesh needs') as error:
    MeshShape(expert=4, model=2).sizes(num_devices)
  advice = str(error.value).split(': add ')[1].split(' for')[0]
  sizes = dict(pair.split('=') for pair in advice.split())
  mended = {
    axis.removeprefix('--gin.MESH_').lower(): int(size)
    for axis, size in sizes.items()
  }
  shape = MeshShape(**{'expert': 4, 'model': 2, **mended})
  assert math.prod(shape.sizes(num_devices)) == num_devices


@pytest.mark.parametrize(
  ('sizes', 'fragment'),
  [
    ({'data': 0}, 'data=0 must be at least 1'),
    ({'model': -4}, 'model=-4 must be at least 1'),
    ({'fsdp': -1}, 'at most one mesh axis may be -1'),
  ],
)
def test_a_size_that_means_nothing_is_refused(sizes, fragment):
  with pytest.raises(ValueError, match=fragment):
    MeshShape(**sizes)


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
    # There are as many devices as in the run's mesh.
    (MeshShape(data=2, expert=4), 8, (1, 2, 1, 4, 1, 1)),
    (MeshShape(data=1, fsdp=-1, expert=4), 8, (1, 1, 2, 4, 1, 1)),
    # There are fewer devices. The expert axis takes devices first.
    (MeshShape(data=2, fsdp=1, expert=4), 1, (1, 1, 1, 1, 1, 1)),
    (MeshShape(data=1, fsdp=2, expert=4), 4, (1, 1, 1, 4, 1, 1)),
    (MeshShape(data=1, fsdp=1, expert=6), 4, (1, 2, 1, 2, 1, 1)),
    # There are more devices. The axis of size -1 takes the remaining devices.
    # Without such an axis, data takes them.
    (MeshShape(data=1, fsdp=-1, expert=2), 16, (1, 1, 8, 2, 1, 1)),
    (MeshShape(data=1, fsdp=2, model=2), 16, (1, 4, 2, 1, 1, 2)),
    # Sampling uses this mesh, too. It makes tokens one by one, so the context
    # axis always gets size 1.
    (MeshShape(data=2, context=4), 8, (1, 8, 1, 1, 1, 1)),
  ],
)
def test_a_mesh_is_fitted_to_the_devices_at_hand(shape, num_devices, sizes):
  assert shape.fitted(num_devices).sizes(num_devices) == sizes


@pytest.mark.parametrize(
  ('sizes', 'axis'),
  [
    ({'data': 4, 'expert': 2}, 'data'),
    ({'data': 1, 'fsdp': 4, 'model': 2}, 'fsdp'),
  ],
)
def test_the_first_axis_spans_two_emulated_slices_of_4_devices(sizes, axis):
  shape = MeshShape(**sizes, num_slices=2)
  assert shape.spanning(8) == axis
  first, second = np.split(make_mesh(shape).devices, 2, AXES.index(axis))
  assert set(first.flat) == set(jax.devices()[:4])
  assert set(second.flat) == set(jax.devices()[4:])


@dataclasses.dataclass(frozen=True)
class Chip:
  """Poses as a TPU of a slice."""

  id: int
  slice_index: int
  platform: str = 'tpu'
  device_kind: str = 'another'
  core_on_chip: int = 0
  process_index: int = 0

  @property
  def coords(self):
    """The coordinates in a slice of 2x2x1 TPUs."""
    return self.id // 2 % 2, self.id // 4, 0


def test_each_slice_has_its_own_chips_in_any_order():
  chips = [Chip(i, i % 2) for i in range(8)]
  assert count_slices(chips) == 2
  mesh = make_mesh(MeshShape(data=2, expert=4, num_slices=2), chips)
  numbers = [[c.slice_index for c in row.flat] for row in mesh.devices[0]]
  assert numbers == [[0] * 4, [1] * 4]


@pytest.mark.parametrize(
  ('shape', 'devices', 'fragment'),
  [
    (MeshShape(expert=8, num_slices=2), None, 'must divide MESH_DATA'),
    (
      MeshShape(data=3, num_slices=2),
      jax.devices()[:3],
      'NUM_SLICES=2 must be',
    ),
    (MeshShape(), [Chip(0, 0), Chip(1, 1)], 'NUM_SLICES=1 must be'),
  ],
)
def test_a_number_of_slices_that_does_not_fit_is_refused(
  shape, devices, fragment
):
  with pytest.raises(ValueError, match=fragment):
    make_mesh(shape, devices)
