import pytest

from tests.scale import layouts

MEANT = (
  '\nIf you meant to change this, run: JAX_PLATFORMS=cpu python -m'
  ' tests.scale.layouts'
)


@pytest.mark.parametrize('name', layouts.LAYOUTS)
def test_every_array_is_sharded_as_in_the_golden_file(name):
  changed = layouts.difference('shardings', name)
  assert not changed, changed + MEANT


@pytest.mark.slow
@pytest.mark.parametrize('name', layouts.LAYOUTS)
def test_a_step_has_the_collectives_of_the_golden_file(name):
  changed = layouts.difference('collectives', name)
  assert not changed, changed + MEANT


def test_a_moved_axis_shows_as_a_changed_line(monkeypatch):
  from moe.parallel import rules

  table = dict(rules.TABLES['standard'], mlp=('fsdp',), embed=())
  monkeypatch.setitem(rules.TABLES, 'standard', table)
  changed = layouts.difference('shardings', 'dense_fsdp')
  assert (
    '-  stack/periods/block_0/feed_forward/w_up_DF [2x64x128]: - fsdp -'
    in (changed)
  )
  assert (
    '+  stack/periods/block_0/feed_forward/w_up_DF [2x64x128]: - - fsdp'
    in (changed)
  )
