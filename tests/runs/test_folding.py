"""A folding model learns chains by heart, and not their mirror images."""

import dataclasses
import json
import logging
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from moe.data.store import write_store
from moe.modalities import protein, structure_writing
from moe.modalities.structure_writing import Origin
from moe.models.parametrisation import CompleteP
from moe.runs import folding, folding_run
from tasks import proteins
from tests import folding_cases, protein_data

ROOT = pathlib.Path(__file__).parents[2]


def chosen():
  """Three chains of 40 to 60 residues without breaks."""
  fit = [
    chain
    for chain in proteins.Chains().chains('train')
    if 40 <= chain.codes.size <= 60
    and not protein.num_breaks(chain)
    and chain.mask[:, 3].all()
  ]
  return fit[:: len(fit) // 3][:3]


@protein_data.has_data
@pytest.mark.nightly
@pytest.mark.parametrize('number', range(3))
def test_a_chain_is_learned_by_heart_in_three_minutes(number, tmp_path):
  chain = chosen()[number]
  (tmp_path / 'one_chain').mkdir()
  text = structure_writing.pdb_text(
    chain, np.ones(chain.codes.size), Origin('a file', '0' * 64)
  )
  (tmp_path / 'one_chain' / 'chain.pdb').write_text(text)

  def run(*command):
    subprocess.run(
      [sys.executable, '-m', *command],
      cwd=tmp_path,
      env={
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'WUDAO_CACHE': str(tmp_path / 'cache'),
      },
      check=True,
    )

  begin = os.times().children_user
  run('launch.train', '--gin_file=runs/fold_overfit.gin', '--workdir=run')
  # Three minutes on two cores are 2 * 180 CPU seconds.
  assert os.times().children_user - begin < 2 * 180
  run(
    'launch.proteins',
    'score',
    '--checkpoint=run',
    '--structures=./one_chain',
    '--recycles=0',
  )
  found = json.loads((tmp_path / 'run/protein_scores.json').read_text())
  scores = found['chains'][0]['scores']['model']
  assert scores['RMSD'] <= 0.5 and scores['lDDT'] >= 0.98
  assert scores['RMSD'] + scores['mirror RMSD - RMSD'] >= 3


def test_a_run_with_a_parametrisation_is_loaded_but_not_trained():
  run = folding_cases.configured().run
  trunk = run.model.trunk.clone(parametrisation=CompleteP(16, 2))
  old = dataclasses.replace(run, model=run.model.clone(trunk=trunk))
  with pytest.raises(ValueError, match='PARAMETRISATION must be None'):
    old.program()


def test_the_runs_own_chains_do_where_longer_ones_cannot_be_read(
  tmp_path, caplog
):
  record = protein.record_of(folding_cases.helix(40))
  write_store(tmp_path / 'train', [record], dict)

  def prepare(names, longest, cache_dir):
    if longest > 96:
      raise ValueError('The data file must be there.')
    return {name: {'train': str(tmp_path / 'train')} for name in names}

  data = folding_run.Chains(['chains'], 32, 2, longest=96, cache_dir='here')
  run = types.SimpleNamespace(data=data)
  with caplog.at_level(logging.INFO):
    (found,) = folding.training_chains(run, prepare)
  assert found.codes.size == 40
  assert 'chains of at most 96 residues' in caplog.text
