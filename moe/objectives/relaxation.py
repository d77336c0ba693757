"""Relaxes a folded backbone: right bonds, no clashes, and little motion.

A structure module that is not sure of a place gives the mean of the places
that it thinks possible. So bonds are too short, and atoms overlap. AlphaFold 2
relaxes its structures with a force field (Jumper et al. 2021, supplement 1.8.6,
https://doi.org/10.1038/s41586-021-03819-2). Here each residue moves as a rigid
body, and the energy has the terms of `violations`. It reads the backbone alone;
side chains move along. Every bond becomes trans, though about one in 500 bonds
is cis. Relaxation mends the geometry. It makes no fold more right.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from moe.modalities import residues, rigid
from moe.objectives import violations
from moe.types import Array

# Learning rate of the first step, in Angstrom; it decays to 0.
_RATE = 0.1
# Weights of squared errors of bonds, of crowded CA atoms, of wrong angles and
# clashes, and of squared motions of CA atoms.
_BONDS, _CROWDED, _VIOLATIONS, _MOTION = 30.0, 30.0, 3.0, 0.3
# Updates of rotations are divided by this number of Angstrom. So a rotation and
# a translation move the atoms of a backbone about equally far.
_REACH = 5.0
# Standard deviations by which an angle of a peptide bond may be off.
_TOLERANCE = 3.0
# In Angstrom. CA atoms that are no neighbours should be no nearer than this.
_LEAST_CA = 4.0
_BACKBONE = len(residues.BACKBONE)


def energy(
  codes: Array, numbers: Array, atoms: Array, mask: Array, start: Array
) -> Array:
  """What relaxation minimises; it is small for a crystal.

  Args:
    codes: int32 [I].
    numbers: int32 [I], places in the sequence.
    atoms: [I, P, 3] in Angstrom; the first atoms are N, CA and C.
    mask: bool [I, P], atoms that count.
    start: [I, P, 3], the atoms before relaxation.
  """
  ca_ca, c_n = violations.neighbour_errors(codes, numbers, atoms, mask)
  angles, _ = violations.bond_violations(
    codes, numbers, atoms, mask, _TOLERANCE
  )
  clash, _ = violations.clashes(codes, numbers, atoms, mask)
  has_ca, ca = mask[:, 1], atoms[:, 1]
  crowded = violations.crowding(numbers, ca, has_ca, _LEAST_CA)
  moved = jnp.where(has_ca[:, None], ca - start[:, 1], 0)
  count = functools.partial(jnp.sum, dtype=atoms.dtype)
  return (
    _BONDS * jnp.sum(jnp.square(ca_ca) + jnp.square(c_n))
    + _VIOLATIONS * (jnp.sum(angles) + clash * count(mask))
    + _CROWDED * crowded * count(has_ca)
    + _MOTION * jnp.sum(jnp.square(moved))
  )


@jax.jit
def relaxed(
  codes: Array, numbers: Array, atoms: Array, mask: Array, steps: int | Array
) -> Array:
  """Moves residues until their energy is low; returns atoms [I, P, 3].

  Args:
    codes: int32 [I].
    numbers: int32 [I], places in the sequence.
    atoms: [I, P, 3] in Angstrom; the first atoms are N, CA, C and O.
    mask: bool [I, P], known atoms. Those of the backbone count.
    steps: number of steps of Adam.
  """
  frames = rigid.from_backbone(*jnp.moveaxis(atoms[:, :3], 1, 0))
  local = frames.expand().apply_inverse(atoms)
  optimizer = optax.scale_by_adam()

  def moved(update: Array, local: Array) -> Array:
    update = jnp.concatenate([update[:, :3] / _REACH, update[:, 3:]], axis=-1)
    return frames.compose(rigid.from_update(update)).expand().apply(local)

  def energy_of(update: Array) -> Array:
    now, known = moved(update, local[:, :_BACKBONE]), mask[:, :_BACKBONE]
    return energy(codes, numbers, now, known, atoms)

  def step(number: int, carried: tuple) -> tuple:
    update, state = carried
    # optax mixes dtypes, which strict promotion forbids.
    with jax.numpy_dtype_promotion('standard'):
      change, state = optimizer.update(jax.grad(energy_of)(update), state)
      rate = _RATE * (1 + jnp.cos(jnp.pi * number / steps)) / 2
      return update - rate.astype(update.dtype) * change, state

  update = jnp.zeros((len(codes), 6), atoms.dtype)
  start = update, optimizer.init(update)
  update, _ = jax.lax.fori_loop(0, steps, step, start)
  return moved(update, local)
