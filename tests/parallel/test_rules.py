import jax
import pytest

from moe import axes
from moe.parallel import rules
from moe.parallel.mesh import AXES, MeshShape, make_mesh
from moe.types import Layout

LOGICAL = {v for k, v in vars(axes).items() if k.isupper()}


@pytest.mark.parametrize('name', sorted(rules.TABLES))
def test_a_table_maps_every_logical_axis_to_axes_of_the_mesh(name):
  table = rules.table(name)
  assert set(table) == LOGICAL
  assert {a for mesh_axes in table.values() for a in mesh_axes} <= set(AXES)


def test_an_unknown_table_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="RULES='standrad'.*'standard'"):
    rules.table('standrad')


def test_activations_keep_their_width_whole():
  names = dict(rules.activation_rules(rules.table('standard')))
  assert names[axes.BATCH] == ('data', 'fsdp', 'expert')
  assert names[axes.KV] is None
  assert axes.EMBED not in names


def test_the_layout_names_the_axes_of_more_than_one_device():
  mesh = make_mesh(MeshShape(data=2, fsdp=1, expert=2, model=2))
  layout = rules.layout(rules.table('standard'), mesh)
  assert layout == Layout(
    batch_axes=('data', 'expert'),
    sequence_axes=(),
    expert_axes=('expert',),
    tensor_axes=('model',),
    sizes=tuple(mesh.shape.items()),
  )
  assert layout.size(layout.batch_axes) == 4


def test_on_one_device_there_is_no_layout():
  mesh = make_mesh(MeshShape(), jax.devices()[:1])
  assert rules.layout(rules.table('standard'), mesh) == Layout()
