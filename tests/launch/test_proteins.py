"""A language model of residues is trained and scored by the commands."""

import json
import re

import jax
import numpy as np
import pytest

from launch import proteins, train
from launch.configs import configuration
from moe.modalities import residues
from moe.runs import chain_documents, chain_states
from tasks.proteins import prepare
from tests import folding_cases

SIZES = {
  'TASK': "'chains'",
  'VOCAB_SIZE': 768,
  'D_MODEL': 16,
  'NUM_LAYERS': 2,
  'UNROLL': 2,
  'NUM_HEADS': 2,
  'NUM_KV_HEADS': 2,
  'HEAD_DIM': 8,
  'D_FF': 16,
  'EXPERT_D_FF': 8,
  'SHARED_D_FF': 8,
  'BATCH_SIZE': 8,
  'GROUP_SIZE': 512,
  'TRAIN_STEPS': 1,
  'WARMUP_STEPS': 0,
  'EVAL_PERIOD': 1,
  'EVAL_TASKS': "('proteins',)",
  'PROMPTS': '()',
}

# All tasks of chains in one mixture, without poems.
MIXTURE = """
from tasks import registry

tasks = [name for name in registry.TASKS if name.startswith('proteins')]
registry.add_mixture('chains', tasks)
"""
TRANSFORMS = """(
  ('proteins_masked', @transforms.MaskBlocks()),
  ('proteins_3di_at_once', @transforms.MaskBlocks()),
)"""


def write_chains(path, sizes):
  """A data file with the backbones of helices."""
  chains = [folding_cases.helix(size, seed=size) for size in sizes]
  np.savez(
    path,
    offsets=np.cumsum([0, *sizes]),
    name=[f'helix{size}' for size in sizes],
    seq=[residues.letters(chain.codes) for chain in chains],
    coords=np.concatenate([chain.atoms[:, :4] for chain in chains]),
    o_ideal=np.ones(len(sizes), bool),
  )


@pytest.mark.slow
def test_a_language_model_of_chains_is_scored_beside_n_grams(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv('WUDAO_DATA', str(tmp_path))
  monkeypatch.setenv('WUDAO_CACHE', str(tmp_path / 'cache'))
  (tmp_path / 'protein').mkdir()
  write_chains(tmp_path / 'protein/chains_train.npz', range(29, 38))
  write_chains(tmp_path / 'protein/chains_valid.npz', (40, 41))
  (tmp_path / 'mixture.py').write_text(MIXTURE)
  modules = ('tasks.chain_tasks', str(tmp_path / 'mixture.py'))
  more = {'TASK_MODULES': modules, 'run.Data.transforms': TRANSFORMS}
  flags = [f'--gin.{name}={value}' for name, value in (SIZES | more).items()]
  run = tmp_path / 'run'
  assert train.main(
    ['--gin_file=runs/chains_cpu.gin', f'--workdir={run}', *flags]
  ) == 0  # fmt: skip
  manifest = next(tmp_path.glob('cache/*/proteins/train/manifest.json'))
  left_out = json.loads(manifest.read_text())['left_out']
  assert left_out == {'fewer than 30 residues': 1}
  capsys.readouterr()
  assert proteins.main(['language', f'--checkpoint={run}']) == 0
  table = capsys.readouterr().out
  rows = [line.split('  ') for line in table.splitlines()]
  value = {row[0]: float(next(filter(None, row[1:]))) for row in rows[1:-1]}
  # The residues are random, so no model knows more than their number.
  assert value['unigram'] > 4 and 4 < value['model'] < 6
  less = value['model'] - value['unigram']
  assert value['model less unigram'] == pytest.approx(less, abs=2e-4)
  # The model has learned nothing yet of residues that are hidden, too.
  assert 4 < value['hidden residues, model'] < 6
  assert value['hidden residues, unigram'] > 4
  # Nearly all letters of a helix are equal.
  assert value['3Di, majority'] > 0.8
  assert 0 <= value['3Di, next letter'] <= 1
  assert 0 <= value['3Di, from the residues alone'] <= 1
  language = ['language', f'--checkpoint={run}']
  assert proteins.main([*language, '--longest=40']) == 0
  assert re.search(r'unigram .* 1  bits per residue', capsys.readouterr().out)
  assert proteins.main([*language, '--longest=39']) == 2
  assert 'longest=39 must leave a chain' in capsys.readouterr().err
  check_states(run)
  flags = ['secondary', f'--checkpoint={run}', '--longest=60']
  assert proteins.main(flags) == 0
  assert 'layers of the language model, mixed' in capsys.readouterr().out


def check_states(run):
  """Residues see each other; the last layer has the hidden states."""
  trained = configuration.load_run(run)
  source = chain_states.of_language_model(trained, prepare)
  assert [len(chain.codes) for chain in source.training] == list(range(30, 38))
  chain, *_ = source.chains('validation')
  codes = chain.codes.copy()
  codes[-1] = (codes[-1] + 1) % 20
  one, other = source.states([chain, chain._replace(codes=codes)])
  assert one.shape == (chain.codes.size, 2, 16)
  assert np.abs(one[0] - other[0]).max() > 1e-6
  block = chain_states._block(trained, chain)
  ((batch, _),) = chain_documents.batches(trained, [block], [block.tokens])
  with jax.set_mesh(trained.mesh):
    hidden = trained.functional.apply(
      trained.params, trained.state, batch, None, False
    ).hidden
  np.testing.assert_allclose(one[:, -1], hidden[0, 1:], atol=1e-5)
