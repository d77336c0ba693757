"""Stores of protein chains hold the fit chains, and list the unfit ones."""

import json
import shutil

import numpy as np
import pytest

from moe.data.chains import all_chains
from moe.data.store import Store
from moe.modalities import protein, residues, structure_writing, torsions
from tasks import proteins, splits
from tests import folding_cases, protein_data

RAW = protein_data.FOLDER / 'raw'


def chain(size, **changes):
  coordinates = np.arange(size * 12.0).reshape(size, 4, 3)
  made = protein.of_backbone('c', 'A' * size, coordinates)
  return made._replace(**changes)


def test_a_break_leaves_a_gap_in_the_numbers():
  whole = folding_cases.helix(12)
  atoms = whole.atoms.copy()
  atoms[5:] += whole.mask[5:, :, None] * np.array([0, 0, 20], 'f4')
  broken = whole._replace(atoms=atoms)
  found = protein.numbered_by_breaks(broken)
  # The CA atoms at the break are about 22 Angstrom apart, which is 6 steps of
  # 3.8 Angstrom.
  assert np.diff(found.numbers).tolist() == [1, 1, 1, 1, 6, 1, 1, 1, 1, 1, 1]
  _, is_known = torsions.torsions(
    found.codes, found.numbers, found.atoms, found.mask
  )
  # The first residue after the break has no omega and no phi.
  without = np.flatnonzero(~np.asarray(is_known[:, 0] & is_known[:, 1]))
  assert without.tolist() == [0, 5]
  kept = protein.numbered_by_breaks(whole).numbers
  np.testing.assert_array_equal(kept, whole.numbers)


@protein_data.has_data
def test_the_given_chains_have_a_gap_at_each_break():
  given = list(proteins.Chains().chains('validation'))
  gaps = [int((np.diff(chain.numbers) > 1).sum()) for chain in given]
  assert gaps == [protein.num_breaks(chain) for chain in given] and any(gaps)


def structure(sequence, path):
  size = len(sequence)
  given = protein.of_backbone('c', sequence, chain(size).atoms[:, :4])
  origin = structure_writing.Origin('by hand', '0' * 64)
  path.write_text(structure_writing.pdb_text(given, np.ones(size), origin))


class Few:
  splits = ('train',)

  def chains(self, split):
    yield chain(40)
    yield chain(29)
    yield chain(41)
    yield chain(30, mask=np.zeros((30, 14), bool))

  def unreadable(self, split):
    return []

  def files_of(self, split):
    return []


def test_unfit_chains_are_counted_with_the_reason(tmp_path, monkeypatch):
  monkeypatch.setattr(proteins, 'source_of', lambda name: Few())
  dirs = proteins.prepare(['few'], 40, tmp_path)
  store = Store(dirs['few']['train'])
  assert store.manifest['records'] == 1
  reasons = [
    'fewer than 30 residues',
    'more than 40 residues',
    'less than half of the backbone is known',
  ]
  assert store.manifest['left_out'] == dict.fromkeys(reasons, 1)
  text = (tmp_path / 'proteins/few_40/train/quarantine.json').read_text()
  assert [bad['error'] for bad in json.loads(text)] == reasons


def test_a_record_holds_the_chain_centred(tmp_path, monkeypatch):
  monkeypatch.setattr(proteins, 'source_of', lambda name: Few())
  dirs = proteins.prepare(['few'], 40, tmp_path)
  (record,) = Store(dirs['few']['train']).read([0])
  read, given = protein.of_record(record), chain(40)
  assert read.name == 'c' and read.sequence == 'A' * 40
  np.testing.assert_allclose(read.atoms[:, 1].mean(axis=0), 0, atol=1e-4)
  shift = given.atoms[:, 1].mean(axis=0)
  np.testing.assert_allclose(read.atoms[:, :4] + shift, given.atoms[:, :4])
  np.testing.assert_array_equal(read.mask, given.mask)


@protein_data.has_data
def test_a_folder_of_structures_becomes_stores(tmp_path):
  folder = tmp_path / 'mine'
  folder.mkdir()
  for path in RAW.glob('*'):
    shutil.copyfile(path, folder / path.name)
  (folder / 'broken.cif').write_text('nothing')
  dirs = proteins.prepare([str(folder)], 1024, tmp_path)[str(folder)]
  names = {
    split: [
      protein.of_record(record).name
      for record in Store(directory).read(
        range(Store(directory).manifest['records'])
      )
    ]
    for split, directory in dirs.items()
  }
  assert '1aki_A' in names['train'] and '3u8v_B' in names['train']
  assert splits.by_hash('broken.cif') == 'train'
  bad = json.loads(next(tmp_path.rglob('train/quarantine.json')).read_text())
  assert 'broken.cif' in [entry.get('file') for entry in bad]


@protein_data.has_data
def test_files_and_chains_that_are_too_little_are_counted(tmp_path):
  folder = tmp_path / 'mine'
  folder.mkdir()
  structure('A' * 30, folder / 'whole.pdb')
  structure('A', folder / 'single.pdb')
  shutil.copyfile(RAW / 'hetatm.pdb.gz', folder / 'hetatm.pdb.gz')
  (folder / 'broken.cif').write_text('nothing')
  dirs = proteins.prepare([str(folder)], 96, tmp_path)[str(folder)]
  left_out = Store(dirs['train']).manifest['left_out']
  assert left_out == {
    'fewer than 30 residues': 1,
    'no protein chain in the file': 1,
    'an unreadable file': 1,
  }
  bad = json.loads(next(tmp_path.rglob('train/quarantine.json')).read_text())
  assert len(bad) == 3
  empty = {'file': 'hetatm.pdb.gz', 'error': 'no protein chain in the file'}
  assert empty in bad


def test_a_file_without_chains_leaves_the_only_chain_for_training():
  names = [f'{number}.pdb' for number in range(200)]
  held_out = next(name for name in names if is_held_out(name))
  trained = next(name for name in names if not is_held_out(name))
  files = [(held_out, ['ACDEFGHIKL']), (trained, [])]
  assert proteins.splits_of(files) == ['train', 'train']


def test_a_folder_with_one_file_is_for_training(tmp_path):
  names = (f'{number}.pdb' for number in range(1000))
  name = next(n for n in names if splits.by_hash(n) == 'validation')
  structure('A' * 30, tmp_path / name)
  folder = proteins.Folder(str(tmp_path))
  assert len(list(folder.chains('train'))) == 1
  assert not list(folder.chains('validation'))


def test_an_unknown_source_is_refused(tmp_path):
  with pytest.raises(ValueError, match="CHAINS must be 'chains' or a folder"):
    proteins.prepare(['pdb'], 96, tmp_path)
  with pytest.raises(ValueError, match='must hold structures'):
    proteins.prepare(['./nothing'], 96, tmp_path)


def test_similar_chains_share_a_split_and_the_manifest_says_so(tmp_path):
  random, letters = np.random.default_rng(0), np.array(list(residues.LETTERS))
  one, two = (''.join(random.choice(letters[:20], 40)) for _ in range(2))
  # The name alone would hold out the files of the first list, not the others.
  held_out = [n for n in map(str, range(200)) if is_held_out(f'{n}.pdb')][:2]
  trained = [n for n in map(str, range(200)) if not is_held_out(f'{n}.pdb')]
  (tmp_path / 'mine').mkdir()
  first, second = sorted((held_out[0], trained[-1]))
  for name, sequence in (
    (first, one),
    (second, one[:30] + two[:10]),
    (held_out[1], two),
    (trained[0], ''.join(random.choice(letters[:20], 40))),
  ):
    structure(sequence, tmp_path / 'mine' / f'{name}.pdb')
  source = proteins.Folder(str(tmp_path / 'mine'))
  of = {s: {c.sequence for c in source.chains(s)} for s in splits.NAMES}
  together = {one, one[:30] + two[:10]}
  assert together <= of[splits.by_hash(f'{first}.pdb')]
  dirs = proteins.prepare([str(tmp_path / 'mine')], 96, tmp_path)
  stores = dirs[str(tmp_path / 'mine')]
  assert Store(stores['validation']).manifest['highest_identity'] < 0.3
  assert 'highest_identity' not in Store(stores['train']).manifest


def test_a_new_file_leaves_no_chain_in_both_splits(tmp_path):
  random, letters = np.random.default_rng(0), np.array(list(residues.LETTERS))
  held_out = next(n for n in map(str, range(200)) if is_held_out(f'{n}.pdb'))
  trained = next(n for n in map(str, range(200)) if not is_held_out(f'{n}.pdb'))
  folder = tmp_path / 'mine'
  folder.mkdir()

  def stored():
    """Sequences by split, after the stores are brought up to date."""
    dirs = proteins.prepare([str(folder)], 96, tmp_path)[str(folder)]
    stores = {split: Store(place) for split, place in dirs.items()}
    return {
      split: {chain.sequence for chain in all_chains(store)}
      for split, store in stores.items()
    }

  one, two = (''.join(random.choice(letters[:20], 40)) for _ in range(2))
  structure(one, folder / f'{held_out}.pdb')
  # The only file is for training, whatever its name.
  assert stored() == {'train': {one}}
  structure(two, folder / f'{trained}.pdb')
  assert stored() == {'train': {two}, 'validation': {one}}
  (folder / f'{trained}.pdb').unlink()
  assert stored() == {'train': {one}}


def is_held_out(name):
  return splits.by_hash(name) == 'validation'
