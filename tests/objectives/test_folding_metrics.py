"""Metrics of folded chains: shares by hand, the mirror, what ranks steps."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe.evaluate import structure_baselines as baselines
from moe.evaluate import structures
from moe.objectives import folding_metrics


def metrics(points, true, known=None, numbers=None):
  size = len(points)
  found = folding_metrics.metrics(
    jnp.arange(size)[None] if numbers is None else jnp.asarray(numbers)[None],
    jnp.asarray(points, 'f4')[None],
    jnp.asarray(true, 'f4')[None],
    jnp.ones((1, size), bool) if known is None else jnp.asarray(known)[None],
  )
  return {name: float(value[0]) for name, value in found.items()}


def test_steps_and_clashes_are_counted_by_their_definition():
  points = np.zeros((5, 3))
  points[:, 0] = [0, 3.8, 7.9, 5, 99]
  true = np.arange(15.0).reshape(5, 3)
  known = np.array([True, True, True, True, False])
  found = metrics(points, true, known)
  # The steps are 3.8, 4.1 and 2.9, and only the first is right.
  assert found['ca_steps_off'] == pytest.approx(2 / 3)
  assert found['ca_step'] == pytest.approx((3.8 + 4.1 + 2.9) / 3, abs=1e-5)
  # Of the pairs (0, 2), (0, 3) and (1, 3), only the last is below 3.
  assert found['ca_clashes'] == pytest.approx(1 / 3)
  gap = metrics(points, true, known, [0, 1, 5, 6, 7])
  # The step of 4.1 is across a gap. The pair (1, 2) is now one of other atoms.
  assert gap['ca_steps_off'] == pytest.approx(1 / 2)
  assert gap['ca_clashes'] == pytest.approx(1 / 4)


def test_a_collapsed_chain_clashes_everywhere():
  found = metrics(np.zeros((9, 3)), np.eye(9)[:, :3])
  assert found['ca_clashes'] == 1 and found['ca_steps_off'] == 1
  assert found['mirror_is_worse'] == 0


def test_the_mirror_image_is_worse_where_its_rmsd_is_larger():
  random = np.random.RandomState(0)
  signs = []
  for _ in range(20):
    true, points = random.randn(2, 12, 3)
    points = points + 0.3 * true
    worse = structures.chirality(points, true) > 0
    far = points + [50, -20, 7]
    assert metrics(far, true)['mirror_is_worse'] == worse
    mirror = points * [1, 1, -1]
    assert metrics(mirror, true)['mirror_is_worse'] == 1 - worse
    # Unknown residues do not count.
    more = np.concatenate([points, 9 * random.randn(3, 3)])
    padded = np.concatenate([true, np.zeros((3, 3))])
    known = np.arange(15) < 12
    assert metrics(more, padded, known)['mirror_is_worse'] == worse
    signs.append(worse)
  assert 0 < sum(signs) < 20


def test_neither_a_helix_nor_a_compact_walk_ranks_above_a_rough_structure():
  random = np.random.RandomState(1)
  # A helical hairpin: two helices side by side, the second one backwards.
  one = baselines.helix(20)
  true = np.concatenate([one, one[::-1] + [9, 0, 0]])
  rough = true + 2 * random.randn(40, 3)

  def score(points):
    found = metrics(points, true)
    sums = {name: (value, 1.0) for name, value in found.items()}
    return folding_metrics.SCORE.value(sums, {}), found

  (best, of_rough) = score(rough)
  (helix, of_helix) = score(baselines.helix(40))
  (walk, of_walk) = score(baselines.random_walk(40, 0))
  # By lDDT alone the helix would win, although it is no hairpin.
  assert of_helix['lddt'] > of_rough['lddt']
  assert of_walk['lddt_far'] > of_helix['lddt_far']
  assert best > helix and best > walk
  mean = (of_rough['lddt'] + of_rough['lddt_far']) / 2
  assert best == pytest.approx(mean)
  assert folding_metrics.SCORE.is_higher_better
