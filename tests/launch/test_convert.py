"""Tests launch.convert, which exports a run and imports it again."""

import json

import jax
import numpy as np
import pytest

from launch import convert
from launch.configs import configuration
from moe.checkpoint import hugging_face_files, safetensors_file
from moe.checkpoint.restore import leaves
from moe.evaluate import score
from moe.infer import decode
from moe.runs import model_card, scorecard, trained

SMALL = 4e-6  # Largest size of a file, in GiB: this is 4.3 kB.


@pytest.fixture(scope='module')
def exported(run_directory, tmp_path_factory):
  """A directory with an exported run, in several files.

  Its embedding and head share a table, and embeddings are scaled.
  """
  directory = tmp_path_factory.mktemp('hf') / 'model'
  flags = ['to-hf', str(run_directory), str(directory)]
  assert convert.main([*flags, f'--shard_gib={SMALL}']) == 0
  return directory


@pytest.fixture(scope='module')
def imported(exported, tmp_path_factory):
  """The directory of a run that was imported from `exported`."""
  directory = tmp_path_factory.mktemp('runs') / 'imported'
  assert convert.main(['from-hf', str(exported), str(directory)]) == 0
  return directory


def test_a_model_directory_has_all_that_transformers_asks_for(exported):
  names = sorted(path.name for path in exported.iterdir())
  weights = [name for name in names if name.endswith('.safetensors')]
  assert len(weights) > 2
  assert set(names) - set(weights) == {
    'LICENSE',
    'README.md',
    'config.json',
    'generation_config.json',
    'model.safetensors.index.json',
    'tokenizer.json',
    'tokenizer.model',
    'tokenizer_config.json',
  }
  index = json.loads((exported / 'model.safetensors.index.json').read_text())
  assert set(index['weight_map'].values()) == set(weights)
  config = json.loads((exported / 'config.json').read_text())
  assert config['model_type'] == 'qwen3_moe'
  assert config['tie_word_embeddings']
  assert 'Apache License' in (exported / 'LICENSE').read_text()


def test_a_file_holds_no_more_than_was_asked_for(exported):
  for path in exported.glob('*.safetensors'):
    entries = safetensors_file.read_header(path)
    size = sum(entry.num_bytes for entry in entries.values())
    assert size <= SMALL * convert.GIB or len(entries) == 1


def test_out_in_and_out_again_gives_the_same_bytes(
  exported, imported, tmp_path
):
  again = tmp_path / 'model'
  flags = ['to-hf', str(imported), str(again), f'--shard_gib={SMALL}']
  assert convert.main(flags) == 0
  for path in exported.iterdir():
    if path.name != 'README.md':  # It has the step, which differs.
      assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_what_comes_in_computes_what_went_out(run_directory, imported):
  logits = []
  for directory in (run_directory, imported):
    place = trained.find(str(directory))
    config = configuration.load([place.config], [])
    run = trained.read_back(config, place, jax.devices()[:1])
    tokens = np.array([[0, *run.vocabulary.encode('春眠不覺曉')]], np.int32)
    logits.append(logits_of(run, tokens))
  np.testing.assert_allclose(logits[0], logits[1], atol=2e-5)


def logits_of(run, tokens):
  @jax.jit
  def forward(params, tokens_BT):
    length_B = jax.numpy.full(1, tokens_BT.shape[1], 'int32')
    batch = decode.read_batch(tokens_BT, length_B, 0 * length_B)
    outputs = run.functional.apply(params, run.state, batch, None, False)
    return run.functional.head(params, outputs.hidden)

  return np.asarray(forward(run.params, tokens))


def test_the_card_says_size_data_and_limits(exported):
  card = (exported / 'README.md').read_text(encoding='utf-8')
  assert card.startswith('---\nlicense: "apache-2.0"\n')
  for words in (
    '2 experts, 2 of them active',
    'FLOPs of a token, optimizer',
    'builtin',
    '## Limits',
    '## Cite',
  ):
    assert words in card


def test_the_card_has_the_scores_and_licences_of_a_stored_scorecard(
  run_directory, monkeypatch
):
  licences = [('weights', 'Apache-2.0'), ('builtin', 'no rights reserved')]
  one = score.Score('acc', 0.25, 0.2, 0.3, n=8, unit='share').as_json()
  entries = [{'name': 'wsc273', 'metrics': [one]}]
  measured = {'licences': licences, 'benchmarks': entries, 'readings': []}
  measured |= {'languages': [], 'loss': {}}
  monkeypatch.setattr(scorecard, 'stored', lambda workdir, step: measured)
  run = configuration.load_run(str(run_directory))
  card = model_card.card(run, 'qwen3_moe', 'folder')
  assert '| wsc273: acc | 0.2500 (0.2000 to 0.3000) share, n = 8 |' in card
  assert '| licence of builtin | no rights reserved |' in card


def test_fused_experts_are_the_same_weights(run_directory, exported, tmp_path):
  directory = tmp_path / 'model'
  flags = ['to-hf', str(run_directory), str(directory), '--fused']
  assert convert.main(flags) == 0
  found = hugging_face_files.find(str(directory))
  singles = hugging_face_files.find(str(exported))
  layer = 'model.layers.0.mlp.experts.'
  fused = safetensors_file.read_array(*found[f'{layer}gate_up_proj'])
  parts = [
    safetensors_file.read_array(*singles[f'{layer}1.{name}_proj.weight'])
    for name in ('gate', 'up')
  ]
  np.testing.assert_array_equal(fused[1], np.concatenate(parts))


def test_the_block_that_predicts_two_tokens_ahead_is_left_out(
  exported, ahead_directory, tmp_path, capsys
):
  flags = ['to-hf', str(ahead_directory), str(tmp_path / 'model')]
  assert convert.main(flags) == 0
  assert 'two tokens ahead is left out' in capsys.readouterr().err
  found = hugging_face_files.find(str(tmp_path / 'model'))
  assert found.keys() == hugging_face_files.find(str(exported)).keys()


@pytest.mark.parametrize(
  'file', ['../secret.safetensors', '/etc/passwd', 'a/b']
)
def test_an_index_opens_nothing_outside_of_its_directory(tmp_path, file):
  index = {'weight_map': {'a': file}}
  path = tmp_path / 'model.safetensors.index.json'
  path.write_text(json.dumps(index))
  with pytest.raises(ValueError, match='the file name'):
    hugging_face_files.find(str(tmp_path))


def test_a_directory_with_files_is_not_written_into(
  run_directory, exported, capsys
):
  assert convert.main(['to-hf', str(run_directory), str(exported)]) == 2
  assert 'must be empty' in capsys.readouterr().err


def test_a_directory_without_a_model_is_one_sentence(tmp_path, capsys):
  flags = ['from-hf', str(tmp_path), str(tmp_path / 'run')]
  assert convert.main(flags) == 2
  assert 'without config.json' in capsys.readouterr().err


def test_every_array_of_an_imported_run_is_read(imported):
  place = trained.find(str(imported))
  run = trained.read_back(configuration.load([place.config], []), place)
  for name, leaf in leaves(run.params).items():
    assert np.abs(np.asarray(leaf)).max() > 0, name
