"""Tests launch.models, which prints a table of models."""

import json
import os

from launch import models
from moe.planning import model_table


def test_files_that_only_wire_parts_are_not_listed_as_models():
  names = models.names()
  assert {'tiny', 'wudao2_1t75', 'deepseek_v3_671b'} <= set(names)
  assert not any('decoder' in name for name in names)


def test_the_table_says_why_a_total_is_off_by_more_than_one_percent(capsys):
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
  assert list(rows) == ['tiny', 'small']  # Models are sorted by size.
  assert rows['small'] == model_table.table_row(
    models.FOLDER / 'small.gin', models.loaded('small')
  )


def test_the_table_has_our_figures_and_the_published_ones(capsys):
  assert models.main(['mixtral_8x7b']) == 0
  line = next(
    line for line in capsys.readouterr().out.split('\n') if 'mixtral' in line
  )
  cells = [cell.strip() for cell in line.strip('│').split('│')]
  assert cells[:7] == [
    *('mixtral_8x7b', '46.7B', '46.7B', '+0.01'),
    *('12.88B', '12.9B', '-0.16'),
  ]


def test_an_unknown_model_is_an_error_that_names_the_models(capsys):
  assert models.main(['tiny', 'huge']) == 2
  captured = capsys.readouterr()
  assert "error: 'huge' must be one of base, cogview_4b, cpm2" in captured.err
  assert not captured.out
