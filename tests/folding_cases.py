"""A tiny folding run and chains for it."""

import functools

import jax
import numpy as np

from launch.configs import configuration
from moe.data import chains
from moe.modalities import protein, residues

FILES = ['models/fold_nano.gin', 'parallel/data.gin', 'runs/folding.gin']
SIZES = {
  'D_MODEL': 16,
  'HEAD_DIM': 8,
  'D_FF': 16,
  'EXPERT_D_FF': 8,
  'NUM_EXPERTS': 2,
  'RESIDUE_WIDTH': 16,
  'PAIR_WIDTH': 8,
  'STRUCTURE_LAYERS': 2,
  'FOLDING_HEAD_DIM': 8,
  'POINT_HEADS': 2,
  'POINT_HEAD_DIM': 4,
  'TORSION_WIDTH': 8,
  'CROP': 16,
  'BATCH_SIZE': 2,
  'EVALUATION_LENGTH': 32,
  'TRAIN_STEPS': 2,
  'WARMUP_STEPS': 0,
  'EVAL_PERIOD': 1,
  'SAVE_PERIOD': 2,
  'MESH_DATA': 1,
  'CHAINS': "('chains',)",
}


def configured(**macros):
  """The configuration of a tiny run."""
  bound = [f'{name}={value}' for name, value in (SIZES | macros).items()]
  return configuration.read(FILES, bound)


def helix(size, name='helix', seed=0):
  """A chain with the backbone of an ideal helix and random residues."""
  codes = np.random.RandomState(seed).randint(0, 20, size)
  turn = np.deg2rad(100) * np.arange(size)[:, None]
  # A row for each of N, CA and C has the radius in Angstrom, the angle in
  # degrees, and the height in Angstrom.
  radius, angle, height = np.array(
    [[1.55, -27.5, -0.9], [2.28, 0, 0], [1.69, 26.3, 1.1]]
  ).T
  angle = turn + np.deg2rad(angle)
  height = 1.5 * np.arange(size)[:, None] + height
  atoms = np.stack(
    [radius * np.cos(angle), radius * np.sin(angle), height], axis=-1
  )
  atoms = np.concatenate([atoms, atoms[:, :1]], axis=1)
  sequence = residues.letters(codes)
  return protein.of_backbone(name, sequence, atoms.astype('f4'), 3)


def batch(run, length=16, sizes=(16, 11)):
  """A batch of helices."""
  made = chains.empty_batch(len(sizes), length)
  for row, size in enumerate(sizes):
    chains.fill_row(made, row, helix(size, seed=row), run.ids)
  return made


@functools.cache
def tiny(**macros):
  """(run, functional, random parameters, state) of a tiny model."""
  run = configured(**macros).run
  functional, _, _ = run.functional(jax.devices()[:1])
  shapes = batch(run)
  params, state = jax.jit(lambda key: functional.init(key, shapes)[:2])(
    jax.random.key(0)
  )
  random = np.random.RandomState(1)
  # In many layers of a new model, the weights of the last product are 0. These
  # layers then have no effect.
  params = jax.tree.map(
    lambda x: x + 0.1 * random.randn(*x.shape).astype('f4'), params
  )
  return run, functional, params, state
