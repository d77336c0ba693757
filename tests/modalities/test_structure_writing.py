"""Two readers read back the structures that we write."""

import io

import gemmi
import numpy as np
import pytest

from moe.modalities import residues, structure_files, structure_writing
from moe.modalities.protein import Chain
from moe.modalities.structure_writing import Origin

ORIGIN = Origin('fold, step 7', 'ab' * 32)


@pytest.fixture
def predicted():
  codes = residues.codes('ACDXWG')
  mask = residues.residues().mask[codes].copy()
  mask[3, :4] = True
  atoms = np.random.RandomState(0).randn(6, 14, 3).astype('f4') * 20
  # The atom N of a residue is near C of the residue before, so that the two are
  # bonded.
  atoms[np.arange(1, 6), 0] = atoms[np.arange(5), 2] + 0.7
  chain = Chain('x', codes, np.arange(6, dtype='i4'), atoms, mask)
  return chain, np.linspace(0.1, 0.95, 6)


@pytest.mark.parametrize('ending', ['cif', 'pdb'])
def test_a_written_structure_is_read_back(predicted, ending, tmp_path):
  chain, plddt = predicted
  write = structure_writing.mmcif_text
  if ending == 'pdb':
    write = structure_writing.pdb_text
  path = tmp_path / f'x.{ending}'
  path.write_text(write(chain, plddt, ORIGIN))
  (read,) = structure_files.read(path)
  assert read.sequence == chain.sequence
  np.testing.assert_array_equal(read.mask, chain.mask)
  np.testing.assert_allclose(
    read.atoms[chain.mask], chain.atoms[chain.mask], atol=1e-3
  )
  found = gemmi.read_structure(str(path))[0]['A']
  factors = [one[0].b_iso for one in found]
  np.testing.assert_allclose(factors, 100 * plddt, atol=0.01)


def test_the_mmcif_says_what_it_is(predicted):
  chain, plddt = predicted
  text = structure_writing.mmcif_text(chain, plddt, ORIGIN)
  block = gemmi.cif.read_string(text).sole_block()
  local = block.find('_ma_qa_metric_local.', ['label_seq_id', 'metric_value'])
  values = [float(row[1]) for row in local]
  np.testing.assert_allclose(values, 100 * plddt, atol=0.01)
  # Each metric names the group of the software that computed it.
  groups = block.find('_ma_software_group.', ['group_id', 'software_id'])
  assert [tuple(row) for row in groups] == [('1', '1')]
  assert set(block.find_loop('_ma_qa_metric.software_group_id')) == {'1'}
  assert ORIGIN.sha256 in block.find_value('_software.version')
  assert 'computed model' in text
  # The file must not claim an experiment.
  assert 'THEORETICAL MODEL' in text and 'DIFFRACTION' not in text


def test_the_files_say_that_they_hold_the_backbone_only(predicted):
  chain, plddt = predicted
  mask = chain.mask & (np.arange(14) < 4)
  for one, is_said in ((chain, False), (chain._replace(mask=mask), True)):
    for write in (structure_writing.mmcif_text, structure_writing.pdb_text):
      assert ('backbone only' in write(one, plddt, ORIGIN).lower()) == is_said


def test_the_pdb_file_says_that_it_was_computed(predicted):
  text = structure_writing.pdb_text(*predicted, ORIGIN)
  assert 'COMPUTED, NOT MEASURED' in text and ORIGIN.sha256[:60] in text
  assert max(map(len, io.StringIO(text).read().splitlines())) <= 80
