import json

from launch import calibrate
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
BLOCK = '--gin_file=gin_configs/runs/mixtral_block_v5p_16.gin'


def compiled(monkeypatch, *steps):
  """Replaces `plan_topology`: each call returns the next entry of `steps`."""
  facts = iter(steps)
  monkeypatch.setattr(plan, 'plan_topology', lambda *_: next(facts))


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
  # In Mixtral 8x7B a token is multiplied with 12.75e9 parameters, and MaxText
  # counts all attention scores. So a token takes 6 x 12.75e9 + 12 x 32 x 4096 x
  # 4096 = 82.9e9 FLOP. A chip has 147,456 tokens and does 251.94e12 FLOP/s, so
  # the step takes 48.54 s. The other columns come from MADE.
  assert steps[0] == ['48.54', '2.00', '1.00', 'none']
  assert len(steps) == len(published.PUBLISHED_RUNS)


def test_json_has_null_where_the_compiler_gives_no_seconds(capsys, monkeypatch):
  compiled(monkeypatch, MADE, MADE)
  assert calibrate.main(['published', '--json']) == 0
  row, _ = json.loads(capsys.readouterr().out)
  assert row['predicted']['compiler_seconds'] is None
  assert row['predicted']['full_overlap']['step_seconds'] == 1.0


def test_the_cost_of_a_layer_is_what_one_more_layer_adds(capsys, monkeypatch):
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
