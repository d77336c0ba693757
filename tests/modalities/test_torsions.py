"""All atoms from frames and torsions are those of the known outputs."""

import jax
import jax.numpy as jnp
import numpy as np

from moe.modalities import residues, torsions
from moe.modalities.rigid import Rigid
from tests import protein_data


@protein_data.has_data
def test_all_atoms_are_alphafolds():
  known = protein_data.case('geometry')
  given, out = known['in'], known['out']
  codes, tables = given['residues'], residues.residues()
  made = {}
  for dtype in ('float64', 'float32'):
    with jax.enable_x64(True):
      whole = jnp.asarray(given['T'], dtype)
      backbone = Rigid(whole[..., :3, :3], whole[..., :3, 3])
      alpha = jnp.asarray(given['alpha'], dtype)
      atoms, _ = torsions.all_atoms(jnp.asarray(codes), backbone, alpha)
      made[dtype] = np.asarray(atoms)
    assert made[dtype].dtype == dtype
  np.testing.assert_allclose(
    made['float32'], made['float64'], rtol=1e-4, atol=1e-4
  )
  slots = tables.to_37[codes]
  expected = np.take_along_axis(out['atom_positions'], slots[..., None], axis=1)
  apart = np.linalg.norm(made['float64'] - expected, axis=-1)
  # The known frames are not exact rotations. They stretch space, so the
  # tolerance is multiplied by the stretch.
  stretch = np.linalg.norm(given['T'][:, :3, :3], ord=2, axis=(1, 2))
  off = np.where(tables.mask[codes], apart, 0) / stretch[:, None]
  assert off.max() <= 0.03
  assert not made['float64'][~tables.mask[codes]].any()
