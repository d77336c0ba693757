"""Folding: predicting the structures of protein chains from their residues.

Most losses are from AlphaFold 2 (Jumper et al. 2021, supplement 1.9,
https://doi.org/10.1038/s41586-021-03819-2). Two are added, a smooth lDDT and
the distances between residues that are close in the sequence: with FAPE alone a
chain may collapse. The violations also count CA atoms that are too near. The
atoms of a side chain that the true structure lacks have no loss.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe import axes, bounds
from moe.modalities import residues, rigid, torsions
from moe.modalities.rigid import Rigid
from moe.models.functional import Folded, FoldingFunctional
from moe.objectives import folding_metrics, violations
from moe.objectives import structure_losses as losses
from moe.objectives.objective import Objective
from moe.types import Array, Batch, Field, Pair, PyTree

# Terms that are averaged over chains.
_OF_CHAINS = (
  'distogram',
  'smooth_lddt',
  'local_distances',
  'fape',
  'all_atom_fape',
  'torsions',
  'torsion_lengths',
  'plddt',
  'aligned_errors',
  'violations',
)
_OF_TOKENS = ('load_balance', 'router_z')


@dataclasses.dataclass(frozen=True)
class Factors:
  """Coefficients of the loss terms; a coefficient of 0 turns a term off.

  Attributes:
    distogram: cross-entropy of the binned distances between CB atoms.
    smooth_lddt: 1 - smooth lDDT of CA atoms.
    local_distances: error of distances between backbone atoms of residues that
      are close in the sequence.
    fape: FAPE of backbone frames, averaged over the layers of the structure
      module.
    all_atom_fape: FAPE of all atoms after the last layer.
    torsions: error of torsion angles.
    torsion_lengths: error of the lengths of the (cos, sin) vectors.
    plddt: cross-entropy of the predicted lDDT.
    aligned_errors: cross-entropy of the predicted aligned errors.
    violations: wrong bond lengths, wrong bond angles, clashes, and CA atoms
      that are too near.
    load_balance: the router's load-balance loss.
    router_z: the router's z-loss.
  """

  distogram: float = 0.5
  smooth_lddt: float = 1.0
  local_distances: float = 0.5
  fape: float = 1.0
  all_atom_fape: float = 0.0
  torsions: float = 0.5
  torsion_lengths: float = 0.01
  plddt: float = 0.05
  aligned_errors: float = 0.05
  violations: float = 0.0
  load_balance: float = 0.01
  router_z: float = 1e-3

  def __post_init__(self):
    for name, factor in dataclasses.asdict(self).items():
      bounds.within(name, factor, 'a factor of a loss', least=0)


def fields(num_rows: int, length: int) -> dict[str, Field]:
  """Declares the arrays of a batch of chains, see `moe.data.chains`."""
  row = (axes.BATCH, axes.LENGTH)
  whole = (num_rows, length)
  atoms = (*whole, residues.ATOM14)
  return {
    'tokens': Field(whole, jnp.int32, row),
    'codes': Field(whole, jnp.int32, row),
    'numbers': Field(whole, jnp.int32, row),
    'valid': Field(whole, jnp.bool_, row),
    'atoms': Field((*atoms, 3), jnp.float32, (*row, None, None)),
    'mask': Field(atoms, jnp.bool_, (*row, None)),
    'weights': Field((num_rows,), jnp.float32, (axes.BATCH,)),
  }


def folding(
  functional: FoldingFunctional,
  shape: tuple[int, int],
  factors: Factors | None = None,
  recycles: int = 1,
  clamped: float = 0.9,
  clamp_steps: int = 2000,
  violations_from: int = 0,
  violations_full: int = 0,
) -> Objective:
  """Makes the objective: structures of chains, and confidence in them.

  Args:
    functional: the model's pure functions.
    shape: (B, T) of a batch.
    factors: coefficients of the terms; None for the defaults of `Factors`.
    recycles: how often the model reads its own result again. This is the number
      in evaluation; each training step draws a number from 0 to `recycles`.
    clamped: share of chains in training for which FAPE counts errors above 10
      Angstrom as 10. Evaluation does this for all chains.
    clamp_steps: number of training steps in which this share grows from 0. If
      errors were clamped from the start, far residues would have no gradient.
    violations_from: training step from which the loss of violations counts.
    violations_full: step from which it counts in full. Its share grows from
      step to step, since early structures have too many violations to learn
      anything else.

  Returns:
    The objective. Its score is `folding_metrics.SCORE`.
  """
  factors = factors or Factors()
  bounds.at_least(0, 'RECYCLES', recycles, '0 reads no result again')
  share = 'the share of chains with a clamped error'
  bounds.within('clamped', clamped, share, least=0, most=1)
  bounds.at_least(1, 'clamp_steps', clamp_steps, 'steps until it is reached')
  at_least = bounds.at_least
  at_least(0, 'VIOLATIONS_FROM', violations_from, '0 for the whole training')
  name = 'VIOLATIONS_FULL'
  at_least(violations_from, name, violations_full, 'VIOLATIONS_FROM')

  def loss(
    params: PyTree, state: PyTree, batch: Batch, key: Array | None, train: bool
  ) -> tuple[dict[str, Array], PyTree, dict[str, Pair]]:
    rngs = None
    if key is not None:
      keys = jax.random.split(key, 4)
      rngs = {'router': keys[0], 'dropout': keys[1]}
    s, pair, out = functional.read(params, state['model'], batch, rngs, train)
    count = recycles
    if train:
      count = jax.random.randint(keys[2], (), 0, recycles + 1)
    found = fold_again(
      functional, params, (s, pair, batch), recycles and count, rngs, train
    )
    is_clamped = jnp.ones(batch['weights'].shape, bool)
    shares = {}
    if train:
      begin, end = violations_from, violations_full
      grown = (state['steps'] - begin + 1) / (end - begin + 1)
      shares['violations'] = jnp.clip(grown, 0, 1)
      done = state['steps'].astype(jnp.float32) / clamp_steps
      share = clamped * jnp.minimum(done, 1)
      is_clamped = jax.random.bernoulli(keys[3], share, is_clamped.shape)
    by_chain, metrics = terms(found, batch, is_clamped, factors)
    weights_B = batch['weights']
    sums = {
      name: jnp.sum(x * weights_B) * shares.get(name, 1)
      for name, x in by_chain.items()
    }
    for name in _OF_TOKENS:
      if name in out.losses:  # A dense trunk has no router losses.
        sums[name] = out.losses[name][0]
    metrics = {
      name: (jnp.sum(x * weights_B), weights_B.sum())
      for name, x in metrics.items()
    }
    new = {'model': out.state, 'steps': state['steps']}
    return sums, new, {**out.metrics, **metrics}

  def init(key: Array, shapes: Batch) -> tuple[PyTree, PyTree, PyTree]:
    params, state, logical = functional.init(key, shapes)
    return params, {'model': state, 'steps': jnp.zeros((), jnp.int32)}, logical

  def update(state: PyTree) -> PyTree:
    return {
      'model': functional.update(state['model']),
      'steps': state['steps'] + 1,
    }

  return Objective(
    init,
    functools.partial(fields, *shape),
    loss,
    _weights,
    dataclasses.asdict(factors),
    folding_metrics.SCORE,
    update,
    'residues',
    lambda batch: int(np.count_nonzero(batch['valid'])),
  )


def _weights(batch: Batch) -> dict[str, Array]:
  chains = batch['weights'].sum()
  tokens = jnp.sum(batch['valid'], dtype=jnp.float32)
  return {
    **dict.fromkeys(_OF_CHAINS, chains),
    **dict.fromkeys(_OF_TOKENS, tokens),
  }


def fold_again(
  functional: FoldingFunctional,
  params: PyTree,
  given: tuple[Array, Array, Batch],
  count: Array | int,
  rngs: dict[str, Array] | None = None,
  train: bool = False,
):
  """Runs several passes; returns the result of the last (`Folded`).

  Only the last pass has a gradient.

  Args:
    functional: the model's pure functions.
    params: parameters of the model.
    given: (residues, pairs, batch).
    count: number of passes before the last one.
    rngs: random keys by use.
    train: whether this is training.
  """
  last = functional.module.nothing(given[2])
  if not isinstance(count, int) or count:
    stopped = jax.lax.stop_gradient((params, given))

    def again(_, last):
      fold = functional.fold(*stopped, last, rngs, train)
      return jax.lax.stop_gradient(fold.recycled)

    last = jax.lax.fori_loop(0, count, again, last)
  return functional.fold(params, given, last, rngs, train)


def terms(
  found: Folded, batch: Batch, is_clamped: Array, factors: Factors
) -> tuple[dict[str, Array], dict[str, Array]]:
  """Returns (terms of the loss, metrics); both are name -> numbers [B].

  Args:
    found: what the model returns for the batch.
    batch: the batch.
    is_clamped: bool [B], see `structure_losses.fape`.
    factors: coefficients. A term with coefficient 0 is left out, but the two
      terms of torsions are left out only together.
  """
  codes, numbers = batch['codes'], batch['numbers']
  true, mask = batch['atoms'], batch['mask']
  known = mask[..., :3].all(axis=-1) & batch['valid']
  ca, true_ca = found.atoms[..., 1, :], true[..., 1, :]
  layers = found.structure.frames
  frames = Rigid(layers.rotation[-1], layers.translation[-1])
  true_frames = rigid.from_backbone(*jnp.moveaxis(true[..., :3, :], -2, 0))
  score, has_score = losses.lddt_by_residue(ca, true_ca, known)
  made = {
    'distogram': lambda: losses.distogram(
      found.distogram, torsions.ideal_cb(true), known
    ),
    'smooth_lddt': lambda: losses.smooth_lddt(ca, true_ca, known),
    'local_distances': lambda: losses.local_distances(
      found.atoms, true, mask, numbers
    ),
    'fape': lambda: jnp.mean(
      losses.fape(
        (layers, _repeated(true_frames, layers)),
        known,
        (layers.translation, true_ca[None]),
        known,
        is_clamped,
      ),
      axis=0,
    ),
    'plddt': lambda: losses.mean(
      losses.cross_entropy(
        found.plddt,
        losses.plddt_targets(
          jax.lax.stop_gradient(score), found.plddt.shape[-1]
        ),
      ),
      has_score,
    ),
    'aligned_errors': lambda: _error_loss(
      found.errors, (frames, true_frames), (ca, true_ca), known
    ),
    'violations': lambda: violations.loss(
      codes, batch, found.atoms, factors.all_atom_fape > 0
    ),
    'all_atom_fape': lambda: _all_atom_fape(
      found, batch, true_frames, is_clamped
    ),
  }
  used = {n: made[n]() for n in made if getattr(factors, n)}
  if factors.torsions or factors.torsion_lengths:
    angles, is_known = torsions.torsions(codes, numbers, true, mask)
    error, length = losses.torsion(
      found.structure.torsions[-1],
      angles,
      torsions.other_torsions(codes, angles),
      is_known,
    )
    used |= {'torsions': error, 'torsion_lengths': length}
  metrics = folding_metrics.metrics(numbers, ca, true_ca, known)
  metrics['predicted_lddt'] = losses.mean(
    losses.expected_plddt(found.plddt), known
  )
  return used, metrics


def _repeated(frames: Rigid, layers: Rigid) -> Rigid:
  """Repeats frames for each layer, without a copy."""
  return Rigid(
    jnp.broadcast_to(frames.rotation, layers.rotation.shape),
    jnp.broadcast_to(frames.translation, layers.translation.shape),
  )


def _error_loss(
  logits: Array,
  frames: tuple[Rigid, Rigid],
  points: tuple[Array, Array],
  known: Array,
) -> Array:
  error = losses.aligned_errors(*jax.lax.stop_gradient((frames, points)))
  nats = losses.cross_entropy(
    logits, losses.error_bins(error, logits.shape[-1])
  )
  return losses.mean(nats, known[..., :, None] & known[..., None, :], 2)


def _all_atom_fape(
  found, batch: Batch, true_frames: Rigid, is_clamped: Array
) -> Array:
  """FAPE [B] of known atoms in known groups; symmetric atoms may be swapped."""
  codes, true, mask = batch['codes'], batch['atoms'], batch['mask']
  true, mask = losses.renamed(
    codes, jax.lax.stop_gradient(found.atoms), true, mask
  )
  angles, is_known = torsions.torsions(codes, batch['numbers'], true, mask)
  _, true_groups = torsions.all_atoms(codes, true_frames, angles)
  backbone = mask[..., :3].all(axis=-1, keepdims=True)
  # A side-chain group is known only if its torsion and all earlier ones of its
  # side chain are known.
  chi = jnp.cumprod(is_known[..., 3:].astype(jnp.int32), axis=-1) > 0
  known = jnp.concatenate(
    [backbone, is_known[..., :3] & backbone, chi & backbone], axis=-1
  )
  # Groups 1 and 2 have no heavy atoms, so they are left out.
  known &= jnp.array([1, 0, 0, 1, 1, 1, 1, 1], bool)
  lead = codes.shape[:-1]
  flat = lambda x, dims: x.reshape(*lead, -1, *x.shape[x.ndim - dims :])
  frames = tuple(
    Rigid(flat(g.rotation, 2), flat(g.translation, 1))
    for g in (found.groups, true_groups)
  )
  return losses.fape(
    frames,
    flat(known, 0),
    (flat(found.atoms, 1), flat(true, 1)),
    flat(mask, 0),
    is_clamped,
  )
