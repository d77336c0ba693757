"""Tests the comparison of our pair track with AlphaFold's algorithm."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from launch import bench
from moe.layers import pairs
from moe.planning import pair_comparison


def drawn(heads):
  """Returns (our layers, their parameters, pairs, which residues exist)."""
  rng = np.random.default_rng(1)
  pair = jnp.asarray(rng.normal(size=(2, 5, 5, 4)), jnp.float32)
  valid = jnp.asarray([[True] * 5, [True] * 4 + [False]])
  layers = pair_comparison.layers_of(heads)
  params = pair_comparison.drawn(layers, pair, valid)
  return layers, params, pair, valid


def test_both_directions_alone_add_up_to_our_triangle_multiplication():
  layers, params, pair, valid = drawn(0)
  apart = pair_comparison.separated(params)
  update = layers['triangles'].apply(
    {'params': params['triangles']}, pair, valid
  )
  directions = (pairs.OUTGOING, pairs.INCOMING)
  expected = sum(
    pair_comparison.multiplication(one, apart[one], pair, valid)
    for one in directions
  )
  assert float(jnp.abs(update).max()) > 0.1
  np.testing.assert_allclose(update, expected, atol=1e-5)


def test_the_layers_after_the_triangles_are_the_same():
  layers, params, pair, valid = drawn(2)
  # The last matrices of triangle multiplication are 0, so it changes nothing.
  for direction in (pairs.OUTGOING, pairs.INCOMING):
    last = params['triangles'][direction]
    last['out'] = jax.tree.map(np.zeros_like, last['out'])
  ours = pair_comparison.ours(layers, params, pair, valid)
  apart = pair_comparison.separated(params)
  theirs = pair_comparison.alphafold(2, apart, pair, valid)
  assert float(jnp.abs(ours - pair).max()) > 0.1
  np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_report_has_the_ratio_of_times(capsys):
  argv = ['pairs', '--length=6', '--width=4', '--heads=2', '--rounds=2']
  assert bench.main([*argv, '--json']) == 0
  report = json.loads(capsys.readouterr().out)
  assert report['ratio'] > 0 and report['length'] == 6
  assert report['runs'][1]['ratio_of'].startswith('time of ours over AlphaFold')


def test_a_size_out_of_range_is_refused(capsys):
  assert bench.main(['pairs', '--length=1']) == 2
  assert '--length' in capsys.readouterr().err
