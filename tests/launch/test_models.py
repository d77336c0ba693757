"""The table of models."""

import json
import os

import pytest

from launch import models


def test_files_that_only_wire_are_no_models():
  names = models.names()
  assert {'tiny', 'wudao2_1t75', 'deepseek_v3_671b'} <= set(names)
  assert not any('decoder' in name for name in names)


def test_a_row_by_hand():
  # tiny: vocabulary 2304, width 128, 2 layers; 4 query and 2 key heads of 32; 8
  # experts top-2 of width 128.
  # Of each layer: queries and output 2 * 128 * 128, keys and values 2 * 128 *
  # 64: 49,152; an expert 3 * 128 * 128 = 49,152; the router 128 * 8 = 1,024;
  # two norms of 128 and two of 32: 320. The table has 294,912.
  layer = 49_152 + 1_024 + 320
  row = models.describe('tiny')
  assert row['params_total'] == 294_912 + 128 + 2 * (layer + 8 * 49_152)
  active = 294_912 + 128 + 2 * (layer + 2 * 49_152)
  assert row['params_active'] == active
  # 4 heads * 32 features * 4 FLOPs * 1,024 keys in 2 layers.
  assert row['flops_per_token_forward'] == 2 * active + 2 * 4 * 32 * 4 * 1_024
  assert row['flops_per_token_train'] == 3 * row['flops_per_token_forward']
  assert row['param_bytes'] == 4 * row['params_total']
  assert row['params_total_published'] is None
  assert row['params_total_difference'] is None


def test_published_figures_are_read_from_the_comment(tmp_path, monkeypatch):
  monkeypatch.setattr(models, 'FOLDER', tmp_path)
  for name, line in [
    ('both', '# Published: 1.2T total, 96.6B active.'),
    ('total', '# Published: 395B total.'),
    ('ours', '# 7M parameters.'),
  ]:
    (tmp_path / f'{name}.gin').write_text(f'# A model.\n{line}\nX = 1\n')
  assert models.published('both') == ('1.2T', '96.6B', None)
  assert models.published('total') == ('395B', None, None)
  assert models.published('ours') == (None, None, None)


def test_why_a_total_differs_is_a_sentence_of_the_comment(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(models, 'FOLDER', tmp_path)
  (tmp_path / 'far.gin').write_text(
    '# Published: 1.2T total.\n# Difference: the paper\n# rounds.\n# More.\n'
  )
  assert models.published('far').why == 'the paper rounds.'


def test_published_figures_that_cannot_be_read_are_refused(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(models, 'FOLDER', tmp_path)
  (tmp_path / 'odd.gin').write_text('# Published: about 395B.\n')
  with pytest.raises(ValueError, match="odd.gin: the line '# Published:' must"):
    models.published('odd')


def test_a_difference_is_in_percent_of_the_published_figure():
  assert models.difference(1_010, '0.001M') == pytest.approx(1.0)
  assert models.difference(190 * 10**9, '200B') == pytest.approx(-5.0)
  assert models.difference(5, None) is None


def test_the_table_says_why_a_total_is_more_than_a_hundredth_off(capsys):
  assert models.main(['glam_1t2', 'mixtral_8x7b']) == 0
  notes = capsys.readouterr().out.split('└')[-1]
  assert 'glam_1t2: 1.2T is 1.162T rounded' in ' '.join(notes.split())
  assert 'mixtral' not in notes


def test_models_are_described_without_looking_for_an_accelerator(monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'tpu')
  assert models.main(['tiny']) == 0
  assert os.environ['JAX_PLATFORMS'] == 'cpu'


def test_named_models_are_written_as_json(capsys):
  assert models.main(['--json', 'small', 'tiny']) == 0
  rows = json.loads(capsys.readouterr().out)
  assert list(rows) == ['tiny', 'small']  # by size
  assert rows['small'] == models.describe('small')


def test_the_table_has_ours_and_the_published_figures(capsys):
  assert models.main(['mixtral_8x7b']) == 0
  line = next(
    line for line in capsys.readouterr().out.split('\n') if 'mixtral' in line
  )
  cells = [cell.strip() for cell in line.strip('│').split('│')]
  assert cells[:7] == [
    *('mixtral_8x7b', '46.7B', '46.7B', '+0.01'),
    *('12.88B', '12.9B', '-0.16'),
  ]


def test_an_unknown_model_is_refused_with_those_there_are(capsys):
  assert models.main(['tiny', 'huge']) == 2
  captured = capsys.readouterr()
  assert "error: 'huge' must be one of base, cpm2" in captured.err
  assert not captured.out
