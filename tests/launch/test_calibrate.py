import json

import pytest

from launch import calibrate, plan
from launch.configs import configuration
from moe.planning import published

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
BLOCK = '--gin_file=gin_configs/runs/mixtral_block_v5p_16.gin'
PUBLISHED = published.PUBLISHED[0]


def compiled(monkeypatch, *steps):
  """What the compiler says of one step after the other."""
  said = iter(steps)
  monkeypatch.setattr(plan, 'plan_topology', lambda *_: next(said))


def test_tokens_and_mfu_follow_from_a_predicted_step_time():
  # 100 tokens in 2 s are 50 a second; at 0.01 s each, half of the peak.
  found = published.predictions(MADE, 100, 0.01)['no_overlap']
  assert found == {
    'step_seconds': 2.0,
    'tokens_per_second_per_chip': 50,
    'mfu': 0.5,
  }


def test_the_table_says_none_where_the_compiler_gives_no_seconds(
  capsys, monkeypatch
):
  compiled(monkeypatch, MADE, MADE)
  assert calibrate.main(['published']) == 0
  steps = [
    line.split()[2:]
    for line in capsys.readouterr().out.splitlines()
    if line.strip().startswith('step, s')
  ]
  # Of Mixtral 8x7B 12.75e9 parameters multiply a token, and their counter takes
  # all scores: 6 x 12.75e9 + 12 x 32 x 4096 x 4096 = 82.9e9 FLOP, for 147,456
  # tokens a chip at 251.94e12 a second. Then what was said as compiled.
  assert steps[0] == ['48.54', '2.00', '1.00', 'none']
  assert len(steps) == len(published.PUBLISHED)


def test_json_has_null_where_the_compiler_gives_no_seconds(capsys, monkeypatch):
  compiled(monkeypatch, MADE, MADE)
  assert calibrate.main(['published', '--json']) == 0
  row, _ = json.loads(capsys.readouterr().out)
  assert row['predicted']['compiler_seconds'] is None
  assert row['predicted']['full_overlap']['step_seconds'] == 1.0


def test_a_layer_is_what_one_more_adds(capsys, monkeypatch):
  one = MADE | {'compiler_seconds_once': 0.5}
  two = MADE | {'compiler_seconds_once': 0.75, 'temp_bytes': 5e9}
  compiled(monkeypatch, one, two)
  assert calibrate.main(['layer', BLOCK, '--topology=v5p:2x2x2']) == 0
  out = capsys.readouterr().out
  assert '0.2500 s a layer' in out and '1.00 GB of temporaries' in out


def test_a_layer_has_no_seconds_where_the_compiler_gives_none(
  capsys, monkeypatch
):
  compiled(monkeypatch, MADE, MADE | {'executed_flops_per_chip': 5e12})
  assert calibrate.main(['layer', BLOCK, '--topology=tpu7x:2x2x1']) == 0
  assert 'no seconds by the compiler, 2e+12 FLOP' in capsys.readouterr().out


def test_a_measurement_that_counts_all_scores_is_lower_by_our_counter():

  run = configuration.load([PUBLISHED.gin_file], [])
  counted = plan.plan_shapes(run)['flops_per_token_train']
  found = published.measured(PUBLISHED, run, counted)
  # Unseen scores of a token: 12 FLOP x 32 heads x 128 x 2,048 keys x 32 layers.
  theirs = counted + 12 * 32 * 128 * 2048 * 32
  assert found['mfu'] == pytest.approx(0.5489 * counted / theirs)
