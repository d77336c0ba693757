"""Tests written configurations, including those of older versions."""

import pytest

from launch.configs import configuration

# Text in a configuration now -> the text when modules had other paths.
BEFORE = {
  'from moe.checkpoint import upcycle': 'from moe.train import upcycle',
  'from moe.objectives import language': 'from moe.train import objective',
  'from moe.runs import run': 'from launch import config',
  'language.language_model': 'objective.language_model',
  'run.Run': 'config.Run',
  'run.Data': 'config.Data',
  'run.Initial': 'config.Initial',
}


@pytest.fixture(scope='module')
def texts():
  """(text that a run writes now, text that an older version would write)."""
  files, bound = ['runs/quickstart.gin'], ['SEED=3', 'UPCYCLE=@upcycle.Copy()']
  bound.append('INITIAL_CHECKPOINT="dense"')
  now = before = configuration.read(files, bound).text
  for new, old in BEFORE.items():
    assert new in now
    before = before.replace(new, old)
  return now, before


def write(tmp_path, text):
  path = tmp_path / 'config.gin'
  path.write_text(text, encoding='utf-8')
  return str(path)


def test_a_written_configuration_of_before_is_read_and_written_as_now(
  texts, tmp_path
):
  now, old = texts
  config = configuration.read([write(tmp_path, old)], ['run.Run.clip_norm=2.0'])
  assert config.run.settings.seed == 3 and config.run.clip_norm == 2
  changed = now.replace('clip_norm = %CLIP_NORM', 'clip_norm = 2.0')
  assert config.text == changed


def test_another_spelling_is_no_difference(texts, tmp_path):
  now, old = texts
  path = write(tmp_path, old.replace('SEED = 3', 'SEED = 4'))
  assert configuration.differences(now, path) == ['SEED 4 -> 3']


def test_long_lines_are_broken_and_stay_what_they_are(tmp_path):
  prompts = ('a' * 60, 'b' * 60, '春曉\n', 'quote" and \'')
  files, bound = ['runs/quickstart.gin'], [f'PROMPTS={prompts!r}']
  text = configuration.read(files, bound).text
  assert 'PROMPTS = \\\n    (' in text
  assert max(len(line) for line in text.splitlines()) <= 100
  assert configuration.load([write(tmp_path, text)], []).prompts == prompts


def test_a_called_macro_is_the_scope_of_its_arguments():
  text = configuration.read(['runs/quickstart.gin'], []).operative_text
  assert '\nMODEL/decoder.Decoder.d_model = %D_MODEL\n' in text
  assert '\nstack.Stack.num_layers = %NUM_LAYERS\n' in text
