"""A language model of residues is trained and scored by the commands."""

import numpy as np
import pytest

from launch import proteins, train
from moe.modalities import residues
from tests import folding_cases

SIZES = {
  'TASK': "'proteins'",
  'VOCAB_SIZE': 768,
  'D_MODEL': 16,
  'NUM_LAYERS': 1,
  'UNROLL': 1,
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
  write_chains(tmp_path / 'protein/chains_train.npz', range(30, 38))
  write_chains(tmp_path / 'protein/chains_valid.npz', (40, 41))
  flags = [f'--gin.{name}={value}' for name, value in SIZES.items()]
  run = tmp_path / 'run'
  assert train.main(
    ['--gin_file=runs/chains_cpu.gin', f'--workdir={run}', *flags]
  ) == 0  # fmt: skip
  capsys.readouterr()
  assert proteins.main(['language', f'--checkpoint={run}']) == 0
  table = capsys.readouterr().out
  rows = [line.split('  ') for line in table.splitlines()]
  value = {row[0]: float(next(filter(None, row[1:]))) for row in rows[1:-1]}
  # The residues are random, so no model knows more than their number.
  assert value['unigram'] > 4 and 4 < value['model'] < 6
  less = value['model'] - value['unigram']
  assert value['model less unigram'] == pytest.approx(less, abs=2e-4)
  # Nearly all letters of a helix are equal.
  assert value['3Di, majority'] > 0.8
  assert 0 <= value['3Di, next letter'] <= 1
  assert 0 <= value['3Di, from the residues alone'] <= 1
