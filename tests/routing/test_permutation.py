"""Sums of slots, by one gather or by many."""

import functools

import jax
import numpy as np
import pytest

from moe.routing import permutation


# 16 choices are added in one pass, more in a loop.
@pytest.mark.parametrize('A', [1, 3, 16, 17, 40])
@pytest.mark.parametrize('at_once', [False, True])
def test_tokens_are_the_sums_of_their_slots(at_once, A):
  G, M, S, D = 2, 5, 30, 3
  random = np.random.RandomState(0)
  out_GSD = random.randn(G, S, D).astype('f4')
  slot_GMA = random.randint(-1, S, (G, M, A)).astype('i4')
  slot_GMA[0, 0] = -1
  expected = np.zeros((G, M, D))
  for place in np.ndindex(G, M, A):
    if slot_GMA[place] >= 0:
      expected[place[:2]] += out_GSD[place[0], slot_GMA[place]]
  run = functools.partial(permutation.sum_of_slots, at_once=at_once)
  found = jax.jit(run)(out_GSD, slot_GMA)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
