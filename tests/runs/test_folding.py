"""A folding model learns chains by heart, and not their mirror images."""

import numpy as np
import pytest

from launch.configs import configuration
from moe.evaluate import structures
from moe.modalities import protein, structure_writing
from moe.modalities.structure_writing import Origin
from moe.runs import folded, folding
from tasks import proteins
from tests import protein_data


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
@pytest.mark.optimized
@pytest.mark.parametrize('number', range(3))
def test_a_chain_is_learned_by_heart(number, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  chain = chosen()[number]
  folder = tmp_path / 'one_chain'
  folder.mkdir()
  text = structure_writing.pdb_text(
    chain, np.ones(chain.codes.size), Origin('a file', '0' * 64)
  )
  # The split depends on the name of the file.
  (folder / 'chain.pdb').write_text(text)
  config = configuration.read(['runs/fold_overfit.gin'], ['MESH_DATA=1'])
  run_dir = tmp_path / 'run'
  run_dir.mkdir()
  texts = {'config.gin': config.text}
  prepare = lambda names, longest, _: proteins.prepare(
    names, longest, tmp_path / 'cache'
  )
  assert folding.train(config.run, str(run_dir), texts, prepare) == 0
  model = folded.load(config.run, str(run_dir))
  (found,) = model.fold({'chain': chain.sequence}, 0, 8.0)
  points, true = found.chain.atoms[:, 1], chain.atoms[:, 1]
  assert structures.rmsd(points, true) <= 0.5
  assert structures.lddt(points, true) >= 0.98
  mirror = structures.rmsd(points * np.array([1, 1, -1]), true)
  assert mirror >= 3
