import math

import jax.numpy as jnp
import numpy as np
import pytest

from moe.objectives.language import BITS_PER_CHAR
from moe.train import metrics


def pair(total, weight):
  return jnp.asarray(total, jnp.float32), jnp.asarray(weight, jnp.float32)


STEP = {
  'cross_entropy': pair(12.0, 4.0),
  'loss': pair(3.5, 1.0),
  'skipped': pair(0.0, 1.0),
  # Two layers have four experts and eight rows each.
  'load': pair([[2, 2, 2, 2], [6, 2, 0, 0]], [8, 8]),
  'dropped': pair([0, 2], [8, 8]),
  'entropy': pair([5.0, 2.0], [4, 4]),
  'confidence': pair([1.0, 3.0], [4, 4]),
}


def test_scalars_are_sums_over_weights():
  record = metrics.summarize(STEP)
  assert record['cross_entropy'] == 3.0
  assert record['loss'] == 3.5
  assert record['skipped'] == 0.0
  assert 'bits_per_char' not in record


def test_bits_per_character_by_hand():
  # A token costs 3 nats, which are 3 / ln 2 bits, and has two characters.
  record = metrics.summarize(STEP, BITS_PER_CHAR, {'chars_per_token': 2.0})
  assert record['bits_per_char'] == pytest.approx(3 / math.log(2) / 2)


def test_loads_drops_and_imbalance_by_hand():
  record = metrics.summarize(STEP)
  assert record['layers'] == {
    'load': [[0.25] * 4, [0.75, 0.25, 0.0, 0.0]],
    'max_over_mean': [1.0, 3.0],
    # The loads of layer 1, divided by their mean, are 3, 1, 0 and 0. The
    # standard deviation is sqrt(((3 - 1)^2 + 0 + 1 + 1) / 4) = 1.22474.
    'variation': [0.0, 1.22474],
    'entropy': [1.25, 0.5],
    'confidence': [0.25, 0.75],
    'dropped_fraction': [0.0, 0.25],
  }
  # 2 of 16 rows are dropped. The fullest experts of the two layers have 1 and 3
  # times an even share; the mean is 2.
  assert record['dropped_fraction'] == 2 / 16
  assert record['load_imbalance'] == 2.0


def test_metrics_of_an_exchange_and_of_a_bias_by_hand():
  more = {
    'dropped_receiver': pair([1, 0], [8, 8]),
    'padding': pair([3, 3], [12, 12]),
    'bytes_exchanged': pair([4096, 2048], [2, 2]),  # Two microbatches.
    'bias_norm': pair([0.5, 0.0], [1, 1]),
    'of_a_new_router': pair([2.0, 4.0], [4, 4]),
  }
  record = metrics.summarize({**STEP, **more})
  layers = record['layers']
  # 'dropped' counts the drops at the receiver, too.
  assert layers['dropped_fraction'] == [0.0, 0.25]
  assert layers['dropped_receiver_fraction'] == [0.125, 0.0]
  assert record['dropped_fraction'] == 2 / 16
  assert layers['padding_fraction'] == [0.25, 0.25]
  assert layers['bytes_exchanged'] == [2048.0, 1024.0]
  assert layers['bias_norm'] == [0.5, 0.0]
  assert layers['of_a_new_router'] == [0.5, 1.0]


def test_a_router_that_reports_only_its_load_is_summarized():
  record = metrics.summarize({'load': STEP['load']})
  assert list(record) == ['load_imbalance', 'layers']
  assert list(record['layers']) == ['load', 'max_over_mean', 'variation']


def test_a_dense_model_has_no_numbers_by_layer():
  record = metrics.summarize({'cross_entropy': pair(1.0, 2.0)})
  assert record == {'cross_entropy': 0.5}


def test_a_batch_of_padding_gives_zeros():
  record = metrics.summarize(
    {
      'cross_entropy': pair(0.0, 0.0),
      'load': pair([[0.0, 0.0]], [0.0]),
      'dropped': pair([0.0], [0.0]),
      'entropy': pair([0.0], [0.0]),
      'confidence': pair([0.0], [0.0]),
    },
    BITS_PER_CHAR,
    {'chars_per_token': 1.5},
  )
  assert record['cross_entropy'] == record['bits_per_char'] == 0.0
  assert record['dropped_fraction'] == record['load_imbalance'] == 0.0


def test_a_mean_weighs_batches_by_their_tokens():
  mean = metrics.Mean()
  mean.add({'cross_entropy': pair(8.0, 2.0), 'load': pair([[1, 0]], [1])})
  mean.add({'cross_entropy': pair(4.0, 6.0), 'load': pair([[0, 3]], [3])})
  pairs = mean.pairs()
  assert pairs['cross_entropy'][0] / pairs['cross_entropy'][1] == 12 / 8
  np.testing.assert_array_equal(pairs['load'][0], [[1, 3]])


def test_a_mean_adds_in_double_precision():
  # In float32, 2^24 + 1 is rounded to 2^24.
  mean = metrics.Mean()
  mean.add({'nats': pair(2.0**24, 1.0)})
  for _ in range(3):
    mean.add({'nats': pair(1.0, 1.0)})
  assert mean.pairs()['nats'][0] == 2**24 + 3


def test_a_record_tells_modalities_apart():
  ones = np.ones(2)
  pairs = {
    'load': (np.ones((2, 2)), 2 * ones),
    # Text uses one expert of the first layer and both of the second.
    'load_text': (np.array([[2.0, 0], [1, 1]]), 2 * ones),
    'dropped_text': (np.array([1.0, 0]), 2 * ones),
    'dropped': (np.array([1.0, 0]), 2 * ones),
  }
  record = metrics.summarize(pairs)
  assert record['experts_used_text'] == 1.5
  assert record['dropped_fraction_text'] == 0.25
  assert record['layers']['load_text'] == [[1.0, 0.0], [0.5, 0.5]]
  assert record['layers']['dropped_fraction_text'] == [0.5, 0.0]
  assert 'experts_used_image' not in record
