"""Chains that we read from files are compared with those that gemmi reads."""

import gzip
import io
import logging

import gemmi
import numpy as np
import pytest

from moe.modalities import protein, residues, structure_files, torsions
from moe.objectives import violations
from tests import protein_data

RAW = protein_data.FOLDER / 'raw'
FILES = sorted(RAW.glob('*')) if RAW.is_dir() else []
# The first file has a part of a single residue, the second only a ligand.
WITHOUT_CHAINS = ('altloc', 'hetatm')


def gemmi_residues(path):
  """Chain -> list of residues as (number, letter of the parent, atoms)."""
  found = gemmi.read_structure(str(path))
  found.setup_entities()
  found.remove_alternative_conformations()
  chains = {}
  is_cif = '.cif' in path.name
  for chain in found[0]:
    for one in chain.get_polymer():
      info = gemmi.find_tabulated_residue(one.name)
      if not info.is_amino_acid():
        continue
      name = one.subchain if is_cif else chain.name
      atoms = {a.name: np.array(a.pos.tolist()) for a in one}
      chains.setdefault(name, []).append(
        (one.label_seq, info.one_letter_code.upper(), atoms)
      )
  return chains


@pytest.mark.parametrize(
  'path',
  [p for p in FILES if not p.name.startswith(WITHOUT_CHAINS)],
  ids=lambda p: p.name,
)
def test_a_file_is_read_as_gemmi_reads_it(path):
  chains = structure_files.read(path)
  stem = path.name.split('.')[0]
  known = gemmi_residues(path)
  assert [c.name for c in chains] == [f'{stem}_{name}' for name in known]
  slots = residues.residues().atoms
  for chain, others in zip(chains, known.values(), strict=True):
    seen = np.flatnonzero(chain.mask.any(axis=1))
    assert len(seen) == len(others)
    for row, (number, letter, atoms) in zip(seen, others, strict=True):
      assert residues.letters(chain.codes[row : row + 1]) == letter
      if '.cif' in path.name:
        assert chain.numbers[row] == number - 1
      if 'SE' in atoms:
        atoms['SD'] = atoms.pop('SE')
      names = slots[chain.codes[row]]
      assert {n for n, m in zip(names, chain.mask[row], strict=False) if m} == {
        name for name in atoms if name in names
      }
      for slot, name in enumerate(names):
        if chain.mask[row, slot]:
          np.testing.assert_allclose(
            chain.atoms[row, slot], atoms[name], atol=1e-3
          )


@protein_data.has_data
def test_unseen_residues_have_a_letter_but_no_atoms():
  (one, *_) = structure_files.read(RAW / '2q2k.cif.gz')
  unseen = ~one.mask.any(axis=1)
  assert unseen.any() and not one.atoms[unseen].any()
  assert (one.codes[unseen] < residues.UNKNOWN).any()


@protein_data.has_data
def test_of_alternatives_the_one_with_the_highest_occupancy_is_read():
  text = gzip.decompress((RAW / 'altloc.cif.gz').read_bytes()).decode()
  # Serine and proline share one place of the sequence. The two alternatives of
  # serine have an occupancy of 0.2 each, proline has 0.6.
  atoms, whole, count = structure_files._parse('a.cif', text.encode())
  assert whole is None and count == 1
  assert set(atoms.res_name) == {'PRO'}


def binary_column(column):
  """A column of BinaryCIF with the values of a column of mmCIF."""
  from biotite.structure.io import pdbx

  values, mask = column.as_array(), None
  if all(value.lstrip('-').isdigit() for value in values):
    values = values.astype(np.int32)
  if column.mask is not None:
    mask = pdbx.BinaryCIFData(column.mask.array)
  return pdbx.BinaryCIFColumn(pdbx.BinaryCIFData(values), mask)


@protein_data.has_data
def test_a_binary_file_is_read_as_the_same_text(tmp_path):
  from biotite.structure.io import pdbx

  text = gzip.decompress((RAW / '1aki.cif.gz').read_bytes()).decode()
  block = pdbx.CIFFile.read(io.StringIO(text)).block
  categories = {
    name: pdbx.BinaryCIFCategory(
      {key: binary_column(column) for key, column in block[name].items()}
    )
    for name in ('atom_site', 'pdbx_poly_seq_scheme')
  }
  file = pdbx.BinaryCIFFile({'1AKI': pdbx.BinaryCIFBlock(categories)})
  file.write(tmp_path / '1aki.bcif')
  path = tmp_path / '1aki.bcif.gz'
  path.write_bytes(gzip.compress((tmp_path / '1aki.bcif').read_bytes()))
  wanted = structure_files.read(RAW / '1aki.cif.gz')
  for one in (tmp_path / '1aki.bcif', path):
    for chain, known in zip(structure_files.read(one), wanted, strict=True):
      assert chain.name == known.name and chain.sequence == known.sequence
      np.testing.assert_array_equal(chain.numbers, known.numbers)
      np.testing.assert_array_equal(chain.mask, known.mask)
      np.testing.assert_array_equal(chain.atoms, known.atoms)


@protein_data.has_data
def test_a_ligand_is_no_chain():
  assert structure_files.read(RAW / 'hetatm.pdb.gz') == []


LINE = 'ATOM  {:5d}  {:<3s} {} A{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00  0.00\n'


def pdb(directory, *rows, end='END\n'):
  """Writes a PDB file; a row is a residue as (number, name, x of its N)."""
  lines, serial = [], 0
  for number, name, x in rows:
    for i, atom in enumerate(('N', 'CA', 'C')):
      serial += 1
      lines.append(LINE.format(serial, atom, name, number, x + 1.3 * i, 0, 0))
  path = directory / 'made.pdb'
  path.write_text(''.join(lines) + end)
  return path


def test_a_gap_in_space_and_numbers_is_kept_as_a_gap(tmp_path):
  rows = [(5, 'ALA', 0), (6, 'GLY', 4), (9, 'SER', 20)]
  (chain,) = structure_files.read(pdb(tmp_path, *rows))
  assert chain.sequence == 'AGS' and chain.numbers.tolist() == [0, 1, 4]
  assert protein.num_breaks(chain) == 1


def test_numbers_without_a_gap_get_one_where_the_chain_is_torn(tmp_path):
  # C of residue 6 is at x = 6.6, and N of residue 7 is 30 Angstrom from it.
  rows = [(5, 'ALA', 0), (6, 'GLY', 4), (7, 'SER', 36.6), (8, 'ALA', 40.6)]
  (chain,) = structure_files.read(pdb(tmp_path, *rows))
  assert chain.numbers.tolist() == [0, 1, 3, 4]
  given = chain.codes, chain.numbers, chain.atoms, chain.mask
  _, is_known = torsions.torsions(*given)
  # Omega and phi cross the bond before a residue.
  assert is_known[:, :2].all(axis=1).tolist() == [False, True, False, True]
  # No bond is 30 Angstrom long.
  assert violations.bond_violations(*given)[0].max() < 5


def test_numbers_count_where_the_bond_is_unknown(tmp_path):
  path = pdb(tmp_path, (5, 'ALA', 0), (6, 'GLY', 4), (7, 'SER', 8))
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(line for line in lines if ' C   GLY' not in line))
  (chain,) = structure_files.read(path)
  assert chain.numbers.tolist() == [0, 1, 2]


def test_a_chain_of_one_residue_is_a_chain(tmp_path):
  (chain,) = structure_files.read(pdb(tmp_path, (5, 'ALA', 0)))
  assert chain.sequence == 'A'


def test_of_alternatives_with_equal_occupancy_the_first_is_read(tmp_path):
  path = pdb(tmp_path, (1, 'ALA', 0), (2, 'GLY', 4))
  lines = []
  for line in path.read_text().splitlines(keepends=True):
    if ' CA  ALA' in line:
      half = line.replace('  1.00  ', '  0.50  ')
      first = half.replace(' CA  ALA', ' CA AALA')
      other = half.replace(' CA  ALA', ' CA BALA')
      lines += [first, other.replace('   1.300', '   1.900')]
    else:
      lines.append(line)
  assert len(lines) == 2 * 3 + 2
  path.write_text(''.join(lines))
  (chain,) = structure_files.read(path)
  np.testing.assert_allclose(chain.atoms[0, 1], [1.3, 0, 0], atol=1e-3)


def test_the_first_of_several_models_is_read_and_said_so(tmp_path, caplog):
  one = pdb(tmp_path, (1, 'ALA', 0), (2, 'GLY', 4), end='').read_text()
  model = lambda n: f'MODEL     {n:4d}\n{one}ENDMDL\n'
  (tmp_path / 'two.pdb').write_text(model(1) + model(2) + 'END\n')
  with caplog.at_level(logging.INFO):
    (chain,) = structure_files.read(tmp_path / 'two.pdb')
  assert chain.codes.size == 2 and 'first of 2 models' in caplog.text


def test_a_file_that_is_no_structure_is_refused(tmp_path):
  (tmp_path / 'a.cif').write_text('no structure')
  with pytest.raises(ValueError, match='a.cif must be a structure'):
    structure_files.read(tmp_path / 'a.cif')


def test_the_case_of_a_name_ending_does_not_matter(tmp_path):
  made = pdb(tmp_path, (1, 'ALA', 0), (2, 'GLY', 4))
  path = tmp_path / 'Made.PDB.GZ'
  path.write_bytes(gzip.compress(made.read_bytes()))
  assert structure_files.is_structure(path)
  assert [chain.name for chain in structure_files.read(path)] == ['Made_A']
