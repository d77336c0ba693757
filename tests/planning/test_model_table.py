"""Our counts of parameters beside published counts."""

import pytest

from launch import models
from moe.planning import model_table


def described(name):
  path = models.FOLDER / f'{name}.gin'
  return model_table.table_row(path, models.loaded(name))


def test_a_row_by_hand():
  # The model 'tiny' has vocabulary 2304, width 128, 2 layers, 4 query and 2 key
  # heads of 32, and 8 experts of width 128, top-2. The attention of a layer has
  # 2 * 128 * 128 + 2 * 128 * 64 = 49,152 parameters, an expert 3 * 128 * 128 =
  # 49,152, and the router 128 * 8 = 1,024. Two norms of 128 and two of 32 have
  # 320 parameters. The embedding has 2304 * 128 = 294,912, and the last norm
  # 128.
  layer = 49_152 + 1_024 + 320
  row = described('tiny')
  assert row['params_total'] == 294_912 + 128 + 2 * (layer + 8 * 49_152)
  active = 294_912 + 128 + 2 * (layer + 2 * 49_152)
  assert row['params_active'] == active
  # A token sees 1,024 of 2,048 keys on average. Attention takes 4 heads * 32
  # features * 4 FLOPs * 1,024 keys in 2 layers.
  assert row['flops_per_token_forward'] == 2 * active + 2 * 4 * 32 * 4 * 1_024
  assert row['flops_per_token_train'] == 3 * row['flops_per_token_forward']
  assert row['param_bytes'] == 4 * row['params_total']
  assert row['params_total_published'] is None
  assert row['params_total_difference'] is None


def test_published_figures_are_read_from_the_comment(tmp_path):
  for name, line in [
    ('both', '# Published: 1.2T total, 96.6B active.'),
    ('total', '# Published: 395B total.'),
    ('ours', '# 7M parameters.'),
  ]:
    (tmp_path / f'{name}.gin').write_text(f'# A model.\n{line}\nX = 1\n')
  assert model_table.read_published(tmp_path / 'both.gin') == (
    '1.2T',
    '96.6B',
    None,
  )
  assert model_table.read_published(tmp_path / 'total.gin') == (
    '395B',
    None,
    None,
  )
  assert model_table.read_published(tmp_path / 'ours.gin') == (None, None, None)


def test_the_reason_of_a_difference_is_read_from_the_comment(tmp_path):
  (tmp_path / 'far.gin').write_text(
    '# Published: 1.2T total.\n# Difference: the paper\n# rounds.\n# More.\n'
  )
  assert (
    model_table.read_published(tmp_path / 'far.gin').why == 'the paper rounds.'
  )


def test_published_figures_that_cannot_be_read_are_refused(tmp_path):
  (tmp_path / 'odd.gin').write_text('# Published: about 395B.\n')
  with pytest.raises(ValueError, match="odd.gin: the line '# Published:' must"):
    model_table.read_published(tmp_path / 'odd.gin')


def test_a_difference_is_in_percent_of_the_published_figure():
  assert model_table.difference(1_010, '0.001M') == pytest.approx(1.0)
  assert model_table.difference(190 * 10**9, '200B') == pytest.approx(-5.0)
  assert model_table.difference(5, None) is None
