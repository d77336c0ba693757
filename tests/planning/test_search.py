"""The search ranks layouts by their forecasts."""

import pytest

from moe.planning import search
from moe.scale import compile as compile_lib
from moe.scale import topology
from tests.planning.cases import loaded

pytest.importorskip('libtpu')


@pytest.fixture(scope='module')
def slice_():
  return topology.parse('v5e:2x2')


def test_a_dense_twin_has_no_expert_axis():
  words = {w for words, _ in search._layouts(loaded(DENSE_TWIN=True), 4)
           for w in words}  # fmt: skip
  assert 'MESH_EXPERT=1' in words and 'MESH_EXPERT=2' not in words


@pytest.fixture(scope='module')
def searched(slice_):
  return search.search(loaded(NUM_LAYERS=4), slice_)


@pytest.mark.slow
def test_the_search_tries_remat_policies_and_formats(searched):
  found, _ = searched
  words = {w for f in found for w in f.changes}
  assert {"REMAT='attention'", "REMAT='exchange'", "REMAT='full'"} <= words
  assert 'NUM_MICROBATCHES=2' in words and "MOMENT_DTYPE='float32'" in words
  assert found == sorted(found, key=lambda f: round(f.seconds, 9)) or all(
    a.seconds < 1.02 * b.seconds for a, b in zip(found, found[1:], strict=False)
  )


@pytest.mark.slow
def test_less_exact_formats_are_used_only_if_others_do_not_fit(
  searched, slice_
):
  found, _ = searched
  exact = [f for f in found if f.state == 0]
  less = [f for f in found if f.state > 0]
  assert exact
  limit = search.FILLED * slice_.chip.hbm_bytes
  assert all(f.peak_bytes <= limit for f in found)
  assert all("PARAM_DTYPE='float32'" in f.changes for f in exact)
  assert all(f.changes[-3:] != exact[0].changes[-3:] for f in less)


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused_with_the_reason(slice_):
  # 4 sequences cannot be divided into 8 microbatches.
  _, refused = search.search(loaded(NUM_LAYERS=4, BATCH_SIZE=4), slice_)
  assert any(
    'BATCH_SIZE=4 must be divisible by' in reason for reason in refused
  )


@pytest.mark.slow
def test_transfers_longer_than_products_are_refused_with_the_reason(slice_):
  # With 128 tokens per chip, gathering parameters and summing gradients take
  # longer than all products.
  run = loaded(NUM_LAYERS=4, BATCH_SIZE=4, SEQUENCE_LENGTH=128, GROUP_SIZE=128)
  found, refused = search.search(run, slice_)
  reasons = ' '.join(refused)
  assert 'takes longer than all products' in reasons and 's against' in reasons
  hopeless = {'MESH_DATA=4', 'MESH_FSDP=4'}
  assert not any(hopeless & set(f.changes) for f in found)


def test_layouts_are_compiled_until_enough_of_them_fit():
  rows = [{'changes': (str(i),)} for i in range(5)]

  def compiled(changes):
    if changes[0] in '01':
      raise compile_lib.DoesNotFit('too large', 2.0, 1.0)
    return {'peak_bytes': int(changes[0])}

  search.verify(rows, compiled, wanted=2, most=5)
  assert [r.get('compiled') for r in rows] == [
    {'does_not_fit': 'too large'},
    {'does_not_fit': 'too large'},
    {'peak_bytes': 2},
    {'peak_bytes': 3},
    None,
  ]


def test_at_most_the_given_number_of_layouts_is_compiled():
  rows = [{'changes': (str(i),)} for i in range(5)]

  def compiled(changes):
    raise compile_lib.DoesNotFit('too large', 2.0, 1.0)

  search.verify(rows, compiled, wanted=2, most=3)
  assert sum('compiled' in r for r in rows) == 3
