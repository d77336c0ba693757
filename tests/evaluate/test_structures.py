"""Scores of structures agree with known values and with biotite."""

import numpy as np
import pytest

from moe.evaluate import structure_baselines as baselines
from moe.evaluate import structures
from moe.modalities import protein, structure_files
from moe.modalities.rigid import from_quaternion
from moe.objectives import structure_losses
from tests import folding_cases, protein_data


def walk(size, seed=0):
  """CA atoms of a random chain with 3.8 Angstrom between neighbours."""
  random = np.random.RandomState(seed)
  steps = random.randn(size, 3)
  return np.cumsum(
    3.8 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0
  )


def moved(points):
  turn = np.asarray(from_quaternion(np.array([1.0, 2, -1, 0.5], 'f4')))
  return points @ turn.T.astype('f8') + np.array([5.0, -3, 9])


def test_a_moved_structure_has_perfect_scores_and_its_mirror_has_not():
  true = walk(40)
  points = moved(true)
  assert structures.rmsd(points, true) < 1e-5
  assert structures.lddt(points, true) == 1
  assert structures.tm_and_gdt(points, true) == pytest.approx((1, 1))
  assert structures.chirality(points, true) > 3
  mirror = points * [1, 1, -1]
  assert structures.lddt(mirror, true) == 1
  assert structures.chirality(mirror, true) < -3


@pytest.mark.parametrize('separation', [1, 12])
def test_lddt_is_that_of_the_loss(separation):
  true, points = walk(40), walk(40) + walk(40, 1) / 8
  expected = structure_losses.lddt(
    points.astype('f4'), true.astype('f4'), np.ones(40, bool), separation
  )
  found = structures.lddt(points, true, separation)
  assert found == pytest.approx(float(expected), abs=1e-5)


def test_the_lddt_of_each_residue_is_that_of_the_loss():
  true, points = walk(40), walk(40) + walk(40, 1) / 8
  true[7] += 1000  # This residue has no neighbour.
  expected, is_known = structure_losses.lddt_by_residue(
    points.astype('f4'), true.astype('f4'), np.ones(40, bool)
  )
  found = structures.lddt_by_residue(points, true)
  np.testing.assert_array_equal(np.isnan(found), ~np.asarray(is_known))
  others = np.delete(np.arange(40), 7)
  np.testing.assert_allclose(found[others], expected[others], atol=1e-5)


def test_lddt_and_tm_are_biotites():
  from biotite import structure

  true, points = walk(60), walk(60) + walk(60, 1) / 4
  arrays = []
  for place in (true, points):
    atoms = structure.AtomArray(60)
    atoms.coord = place.astype('f4')
    atoms.atom_name[:], atoms.res_name[:] = 'CA', 'ALA'
    atoms.res_id[:] = np.arange(60)
    arrays.append(atoms)
  expected = structure.lddt(arrays[0], arrays[1], aggregation='all')
  found = structures.lddt(points, true)
  assert found == pytest.approx(float(expected), abs=1e-5)
  # biotite scores one superposition, so its score is a lower bound of ours.
  arrays[1].coord = structures.superpose(points, true).astype('f4')
  index = np.arange(60)
  least = structure.tm_score(*arrays, index, index)
  tm, gdt = structures.tm_and_gdt(points, true)
  assert least - 1e-5 <= tm < least + 0.1 and 0 < gdt < 1


@pytest.mark.parametrize('length', [5, 14, 15, 18, 19, 22, 30, 100, 300])
def test_the_distance_scale_of_the_tm_score_is_biotites(length):
  from biotite import structure

  atoms = structure.AtomArray(1)
  atoms.atom_name[:], atoms.res_name[:] = 'CA', 'ALA'
  other = atoms.copy()
  atoms.coord, other.coord = np.array([[[0, 0, 0]], [[0, 0, 2]]], 'f4')
  # The distance of one pair is 2 Angstrom, so its term is 1 / (1 + (2 / d0)^2).
  found = structure.tm_score(atoms, other, [0], [0], length)
  term = 1 / (1 + (2 / structures.tm_scale(length)) ** 2)
  assert found == pytest.approx(term / length, rel=1e-5)


def test_the_scores_of_tm_align_are_reproduced():
  # The example of https://github.com/jvkersch/tmtools aligns residues 0 and 1
  # of a chain of 4 with residues 0 and 2 of a chain of 3.
  points = np.array([[1.2, 3.4, 1.5], [4.0, 2.8, 3.7]])
  true = np.array([[2.3, 7.4, 1.5], [1.2, 4.2, 4.3]])
  apart = np.linalg.norm(structures.superpose(points, true) - true, axis=-1)
  for length, known in ((4, 0.3105833326322145), (3, 0.414111110176286)):
    terms = 1 / (1 + (apart / structures.tm_scale(length)) ** 2)
    assert terms.sum() / length == pytest.approx(known, abs=1e-9)


# CA atoms of models 1 and 2 of the entry 1l2y of the Protein Data Bank.
TRP_CAGE = np.array("""
  -8.608  3.135 -1.618   -4.923  4.002 -2.452   -3.690  2.738  0.981
  -5.857 -0.449  0.613   -4.122 -1.167 -2.743   -0.716 -0.631 -0.993
  -1.641 -2.932  1.963   -3.024 -5.791 -0.269    0.466 -6.016 -1.905
   2.060 -6.618  1.593    2.626 -2.967  2.723    6.333 -2.533  3.806
   7.049 -6.179  2.704    6.389 -5.315 -1.015    9.451 -3.116 -1.870
   7.289  0.084 -2.054    6.782  3.088  0.345    3.287  4.031  1.686
   1.185  6.543 -0.353    0.852 10.027  1.285

  -7.682  6.025 -0.010   -5.020  4.162 -2.130   -3.537  2.636  1.105
  -5.914 -0.393  0.686   -4.253 -1.225 -2.692   -0.791 -0.749 -1.090
  -1.701 -3.105  1.831   -2.916 -5.759 -0.732    0.739 -5.926 -1.971
   1.973 -6.740  1.632    2.505 -3.133  2.918    6.148 -2.595  4.163
   7.056 -6.106  2.818    6.302 -5.007 -0.834    9.445 -2.839 -1.497
   7.267  0.167 -2.623    6.871  2.981  0.038    3.403  3.904  1.495
   1.125  6.268 -0.557    0.696  9.699  1.148
""".split(), float).reshape(2, 20, 3)  # fmt: skip


def test_the_tm_score_of_us_align_is_reached():
  # biotite (tests/structure/data/tm/tm_scores.json) has US-align's score of
  # model 2 as it lies in the file.
  true, points = TRP_CAGE
  apart = np.linalg.norm(points - true, axis=-1)
  terms = 1 / (1 + (apart / structures.tm_scale(20)) ** 2)
  assert terms.mean() == pytest.approx(0.6979, abs=1e-4)
  # The best superposition scores at least as much. No set of near points gives
  # it, since the distance scale is only 0.5 Angstrom.
  tm, _ = structures.tm_and_gdt(moved(points), true)
  assert tm == pytest.approx(0.7086, abs=1e-3)


def test_a_chain_that_is_too_short_to_fit_has_no_score():
  assert structures.tm_and_gdt(walk(3), walk(3)) == (0, 0)


@protein_data.has_data
@pytest.mark.parametrize('size', [129, 14])
def test_a_protein_has_perfect_scores_wherever_it_is(size):
  # These are tests of biotite (tests/structure/test_tm.py) with lysozyme: a
  # structure fits itself after a random motion, and so does a structure that is
  # too short for the formula of the distance scale.
  path = protein_data.FOLDER / 'raw' / '1aki.cif.gz'
  (chain,) = structure_files.read(path)
  assert chain.codes.size == 129
  true = chain.atoms[:size, 1].astype('f8')
  assert structures.tm_and_gdt(moved(true), true) == pytest.approx((1, 1))
  assert structures.rmsd(moved(true), true) < 1e-3
  assert structures.lddt(moved(true), true) == 1


def test_the_search_finds_the_half_that_fits():
  true = walk(60)
  points = moved(true)
  points[30:] = walk(30, 5) + 40
  tm, gdt = structures.tm_and_gdt(points, true)
  # Half of the residues fit perfectly, and each of them counts as 1.
  assert 0.5 <= tm < 0.6 and 0.5 <= gdt < 0.6


def test_precision_counts_the_most_probable_pairs():
  cb = np.zeros((10, 3))
  # Neighbours are 4 Angstrom apart. Residue 9 is moved next to residue 0.
  cb[:, 0] = 4 * np.arange(10)
  cb[9] = cb[0] + [0, 5, 0]
  score = np.zeros((10, 10))
  score[0, 9], score[1, 7] = 1, 0.5
  assert structures.contact_precision(score, cb, 6, 10) == 1
  assert structures.contact_precision(score, cb, 6, 5) == 0.5
  assert np.isnan(structures.contact_precision(score, cb, 12))


def test_clashes_and_steps_are_counted():
  points = np.array([[0.0, 0, 0], [3.8, 0, 0], [0, 1, 0]])
  assert structures.num_clashes(points) == 1
  np.testing.assert_allclose(
    structures.neighbour_steps(points), [3.8, np.hypot(3.8, 1)]
  )


def test_the_baselines_have_the_shape_of_proteins():
  helix = baselines.helix(40)
  np.testing.assert_allclose(structures.neighbour_steps(helix), 3.8, atol=0.05)
  points = baselines.random_walk(100, 3)
  radius = np.sqrt(np.mean(np.sum(points**2, axis=1)))
  assert radius == pytest.approx(2.2 * 100**0.38)
  np.testing.assert_array_equal(points, baselines.random_walk(100, 3))


def test_contacts_are_counted_by_separation():
  helix = folding_cases.helix(12)
  # The CB atoms of a helix are 5.6 Angstrom apart at a separation of 3, and 9.7
  # at 5. The other chain is stretched, so nothing touches.
  far = helix.mask[..., None] * 20 * np.arange(12)[:, None, None]
  stretched = helix._replace(atoms=helix.atoms + far)
  shares = baselines.contact_shares([helix, stretched], 8)
  assert shares[3] == 0.5 and shares[5] == 0 and shares.shape == (8,)
  # At a separation of 3, the short chain has 6 - 3 pairs and the other 12 - 3.
  short = folding_cases.helix(6)
  shares = baselines.contact_shares([stretched, short], 8)
  assert shares[3] == pytest.approx(3 / 12)


def test_the_secondary_structure_of_points_is_compared_with_the_chain():
  helix = folding_cases.helix(30)
  assert structures.q3(helix, helix.atoms[:, 1]) == 1
  straight = np.outer(np.arange(30), [3.8, 0, 0])
  # P-SEA calls all but the two ends of the helix a helix.
  assert structures.q3(helix, straight) <= 0.1


def chain(name, sequence, points):
  coordinates = np.repeat(points[:, None], 4, axis=1)
  return protein.of_backbone(name, sequence, coordinates)


def test_the_nearest_chain_is_threaded_along_the_alignment():
  random = np.random.RandomState(0)
  letters = lambda n: ''.join(random.choice(list('ACDEFGHIKLMNPQRSTVWY'), n))
  core = letters(40)
  one = chain('one', letters(60), walk(60, 1))
  two = chain('two', letters(10) + core + letters(10), walk(60, 2))
  query = chain('query', letters(5) + core, walk(45, 3))
  found = baselines.nearest(query, [one, two])
  assert found.name == 'two' and found.identity > 0.85
  assert found.score > baselines.NOVEL_BELOW
  np.testing.assert_allclose(found.points[10:40], walk(60, 2)[15:45], atol=1e-4)


def test_the_nearest_chain_may_share_no_word_with_the_chain():
  random = np.random.RandomState(0)
  letters = lambda n: ''.join(random.choice(list('ACDEFGHIKLMNPQRSTVWY'), n))
  core = 'IKDFLRESVYQTMHNW' * 3
  # Every second residue is replaced by a similar one.
  similar = core.translate(str.maketrans('KFRSYTHW', 'RYKAFSYF'))
  others = [
    chain('other', core[:6] + letters(44), walk(50)) for _ in range(120)
  ]
  query, near = (chain('near', x, walk(48)) for x in (core, similar))
  words = lambda x: {x[i : i + 2] for i in range(len(x) - 1)}
  assert not words(core) & words(similar)
  assert baselines.nearest(query, [*others, near]).name == 'near'


def test_missing_atoms_of_the_nearest_chain_are_not_threaded():
  one = chain('one', 'ACDEFGHIKLMNPQRSTVWY', walk(20, 1))
  atoms, mask = one.atoms.copy(), one.mask.copy()
  atoms[8:10], mask[8:10] = 0, False
  found = baselines.nearest(one, [one._replace(atoms=atoms, mask=mask)])
  before, after = one.atoms[7, 1], one.atoms[10, 1]
  # The points of residues 8 and 9 divide the line between residues 7 and 10.
  expected = [(2 * before + after) / 3, (before + 2 * after) / 3]
  np.testing.assert_allclose(found.points[8:10], expected, atol=1e-4)


def test_a_chain_of_unknown_residues_has_a_nearest_chain():
  found = baselines.nearest(
    chain('query', 'X' * 30, walk(30)), [chain('one', 'ACDEFG' * 5, walk(30))]
  )
  assert found.score <= 0 and np.isfinite(found.points).all()


@pytest.fixture(scope='module')
def held_out():
  """The 83 validation chains with at most 96 residues and without breaks."""
  from tasks import proteins

  chains = [
    c
    for c in proteins.Chains().chains('validation')
    if c.codes.size <= 96 and not protein.num_breaks(c)
  ]
  assert len(chains) == 83
  return chains


@protein_data.has_data
@pytest.mark.nightly
def test_the_helix_has_the_scores_of_the_reference(held_out):
  scores = [
    (structures.lddt(baselines.helix(c.codes.size), c.atoms[:, 1]),)
    + structures.tm_and_gdt(baselines.helix(c.codes.size), c.atoms[:, 1])
    for c in held_out
  ]
  # lDDT, TM-score and GDT_TS of an ideal helix, computed by another program.
  np.testing.assert_allclose(
    np.mean(scores, axis=0), [0.357, 0.244, 0.294], atol=0.01
  )


@protein_data.has_data
@pytest.mark.nightly
def test_the_nearest_chain_is_at_least_as_good_as_that_of_the_reference(
  held_out,
):
  from tasks import proteins

  training = list(proteins.Chains().chains('train'))
  assert len(training) == 1961
  lddt, is_novel = [], []
  for chain in held_out:
    found = baselines.nearest(chain, training)
    lddt.append(structures.lddt(found.points, chain.atoms[:, 1]))
    is_novel.append(found.score < baselines.NOVEL_BELOW)
  # Another program found 0.468, and 0.373 for novel chains. Its alignments were
  # local, so the ends of a chain got no atoms of the nearest chain.
  assert np.mean(lddt) == pytest.approx(0.499, abs=0.003)
  assert np.mean(np.array(lddt)[is_novel]) == pytest.approx(0.414, abs=0.003)
