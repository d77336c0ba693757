import pytest

from launch.configs import configuration
from moe.planning import plan, published

MADE = {
  'step_seconds_no_overlap': 2.0,
  'step_seconds_full_overlap': 1.0,
  'compiler_seconds': None,
  'compiler_seconds_once': None,
  'executed_flops_per_chip': 3e12,
  'temp_bytes': 4e9,
  'peak_bytes': 5e9,
  'bound': 'HBM',
}
PUBLISHED = published.PUBLISHED_RUNS[0]


def test_tokens_and_mfu_follow_from_a_predicted_step_time():
  # 100 tokens in 2 s are 50 tokens/s. At the peak a token takes 0.01 s, so the
  # MFU is 0.5.
  found = published.predictions(MADE, 100, 0.01)['no_overlap']
  assert found == {
    'step_seconds': 2.0,
    'tokens_per_second_per_chip': 50,
    'mfu': 0.5,
  }


def test_an_mfu_that_counts_all_scores_is_lower_by_our_counter():
  run = configuration.load([PUBLISHED.gin_file], [])
  counted = plan.plan_shapes(run)['flops_per_token_train']
  found = published.measured(PUBLISHED, run, counted)
  # The masked scores of a token take 12 FLOPs x 32 heads x 128 features x 2,048
  # keys x 32 layers.
  theirs = counted + 12 * 32 * 128 * 2048 * 32
  assert found['mfu'] == pytest.approx(0.5489 * counted / theirs)
