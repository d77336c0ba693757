import pytest

from moe.scale import collectives

MESH = {'data': 2, 'expert': 4}


@pytest.mark.parametrize(
  'written, group',
  [
    ('replica_groups={{0,1,2,3},{4,5,6,7}}', [4, 5, 6, 7]),
    ('replica_groups=[2,4]<=[8]', [4, 5, 6, 7]),
    ('replica_groups=[4,2]<=[2,4]T(1,0)', [1, 5]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [1, 5]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [4, 5, 6, 7]),
    ('source_target_pairs={{0,4},{1,5}}', [1, 5]),
  ],
)
def test_groups_are_read_from_every_notation(written, group):
  groups = collectives.groups_of(f'channel_id=1, {written}, x={{1}}', 8)
  assert groups[1].tolist() == group


def test_a_group_is_named_by_the_mesh_axes_along_which_it_differs():
  assert collectives.axes_of([0, 4], MESH) == ('data',)
  assert collectives.axes_of([0, 1, 2, 3], MESH) == ('expert',)
  assert collectives.axes_of(range(8), MESH) == ('data', 'expert')
