"""Folds sequences with a trained model."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moe import bounds
from moe.checkpoint import listing, restore
from moe.data.chains import empty_batch, fill_row
from moe.modalities import residues
from moe.modalities.ids import IdSpace
from moe.modalities.protein import Chain
from moe.modalities.structure_writing import Origin
from moe.models.folding import Folded, token_batch
from moe.models.functional import FoldingFunctional, Functional
from moe.objectives import relaxation
from moe.objectives import structure_losses as losses
from moe.runs.folding_run import FoldingRun
from moe.types import Array, Batch, PyTree

# Lengths of rows, in residues. Chains are padded to the next length, so that
# few programs are compiled.
BUCKETS = (32, 64, 128, 256, 512, 1024, 2048)
# Pairs of residues in a batch. This bounds how many chains are folded at once.
_PAIRS_AT_ONCE = 8 * 96 * 96
# Residues in a batch of which only the trunk's states are read.
_RESIDUES_AT_ONCE = 4096
# Steps of relaxation.
RELAX_STEPS = 500
# Two residues touch if their CB atoms are nearer than this, in Angstrom.
CONTACT = 8.0


class Prediction(NamedTuple):
  """A folded chain, and the confidence of the model.

  Attributes:
    chain: residues and their heavy atoms; the backbone alone if ALL_ATOM_FAPE
      trained no side chains.
    plddt: [I], expected lDDT of each residue, from 0 to 1.
    errors: [I, J], expected error of the place of residue j in the frame of
      residue i, in Angstrom.
    contacts: [I, J], probability that two residues touch.
    distances: [I, J], expected distance between two CB atoms, in Angstrom.
    tm: expected TM-score of the chain.
  """

  chain: Chain
  plddt: np.ndarray
  errors: np.ndarray
  contacts: np.ndarray
  distances: np.ndarray
  tm: float


@dataclasses.dataclass(frozen=True)
class FoldingModel:
  """A trained model, read from its work directory.

  Attributes:
    functional: the model's pure functions.
    mesh: mesh of the devices that hold the parameters.
    params: parameters of the model.
    state: variables of the model that are not trained.
    ids: the id space.
    origin: name and hash of the model.
    recycles: number of recycles in the evaluation of the run.
    has_side_chains: whether ALL_ATOM_FAPE trained side chains.
  """

  functional: FoldingFunctional
  mesh: Mesh
  params: PyTree
  state: PyTree
  ids: IdSpace
  origin: Origin
  recycles: int
  has_side_chains: bool

  def fold(
    self,
    sequences: Mapping[str, str],
    recycles: int | None,
    memory_limit: float,
    seed: int | None = None,
  ) -> Iterator[Prediction]:
    """Folds sequences; yields their structures, those of small buckets first.

    Args:
      sequences: name of a chain -> its residues as one-letter names.
      recycles: number of passes after the first one. Each reads the result of
        the pass before. None for `self.recycles`.
      memory_limit: GB that the longest sequence may need.
      seed: seed of the dropout in folding blocks. Other seeds give other
        structures. None means no dropout.

    Raises:
      ValueError: if a number is out of range, or if a sequence is too long or
        needs too much memory.
    """
    recycles = self.recycles if recycles is None else recycles
    bounds.at_least(0, '--recycles', recycles, '0 reads no result again')
    self.check_memory(sequences, memory_limit)
    named = list(sequences.items())
    for size, numbers in _by_bucket(map(len, sequences.values())):
      rows = max(1, _PAIRS_AT_ONCE // size**2)
      wanted = [named[number] for number in numbers]
      rows = min(rows, len(wanted))
      for first in range(0, len(wanted), rows):
        part = wanted[first : first + rows]
        yield from self._fold(part, (rows, size), recycles, seed)

  def states(self, chains: Sequence[Chain]) -> list[np.ndarray]:
    """The trunk's states after each layer, [I, L, D] for each chain."""
    found = {}
    for size, numbers in _by_bucket(chain.codes.size for chain in chains):
      rows = max(1, _RESIDUES_AT_ONCE // size)
      for first in range(0, len(numbers), rows):
        part = numbers[first : first + rows]
        batch = empty_batch(rows, size)
        for row, number in enumerate(part):
          one = unfolded(chains[number].name, chains[number].sequence)
          fill_row(batch, row, one, self.ids)
        with jax.set_mesh(self.mesh):
          states = np.asarray(self._states(self.params, self.state, batch))
        for row, number in enumerate(part):
          # A view would keep the padding in memory.
          found[number] = states[row, : chains[number].codes.size].copy()
    return [found[number] for number in range(len(chains))]

  def check_memory(
    self, sequences: Mapping[str, str], memory_limit: float
  ) -> float:
    """Returns the GB that the longest sequence needs.

    Raises:
      ValueError: if it needs more than `memory_limit`, or has more than
        `BUCKETS[-1]` residues.
    """
    name = max(sequences, key=lambda n: len(sequences[n]))
    length = len(sequences[name])
    needed = self.memory(length)
    if needed > memory_limit or length > BUCKETS[-1]:
      raise ValueError(
        f'{name} of {length:,} residues needs about {needed:.1f} GB, more than'
        f' --memory={memory_limit:g} (GB) or {BUCKETS[-1]:,} residues allow:'
        ' raise --memory if the machine has as much, or cut the sequence.'
      )
    return needed

  def memory(self, length: int) -> float:
    """GB that the activations of a chain need, in float32."""
    size = next((b for b in BUCKETS if b >= length), length)
    return 4e-9 * self.functional.module.num_activations(size)

  @functools.cached_property
  def _read(self) -> Callable:
    """Jitted (params, state, batch) -> activations (of residues, of pairs)."""
    read = self.functional.read
    return jax.jit(lambda *given: read(*given, None, False)[:2])

  @functools.cached_property
  def _states(self) -> Callable:
    """Jitted (params, state, batch) -> states of each layer, [B, I, L, D]."""
    trunk = Functional(self.functional.module.trunk, self.functional.rules)
    return jax.jit(
      lambda params, state, batch: trunk.after_each_period(
        params['trunk'], state.get('trunk', {}), token_batch(batch)
      )
    )

  @functools.cached_property
  def _pass(self) -> Callable:
    """The jitted function of one pass; `has_dropout` is a static argument."""

    def run(params, given, last, key, has_dropout):
      rngs = {'dropout': key} if has_dropout else None
      found = self.functional.fold(params, given, last, rngs, has_dropout)
      shown = _confidence(found, given[2]['valid'])
      return found.recycled, {'atoms': found.atoms, **shown}

    return jax.jit(run, static_argnums=4)

  def _run(
    self, batch: Batch, recycles: int, seed: int | None
  ) -> dict[str, np.ndarray]:
    """Folds a batch; all passes share one compiled program."""
    key = jax.random.key(seed or 0)
    with jax.set_mesh(self.mesh):
      given = (*self._read(self.params, self.state, batch), batch)
      last = self.functional.module.nothing(batch)
      for _ in range(recycles + 1):
        last, found = self._pass(
          self.params, given, last, key, seed is not None
        )
    return jax.device_get(found)

  def _fold(
    self,
    part: Sequence[tuple[str, str]],
    shape: tuple[int, int],
    recycles: int,
    seed: int | None,
  ) -> Iterator[Prediction]:
    batch = empty_batch(*shape)
    for row, (name, sequence) in enumerate(part):
      fill_row(batch, row, unfolded(name, sequence), self.ids)
    found = self._run(batch, recycles, seed)
    tables = residues.residues()
    for row, (name, sequence) in enumerate(part):
      size = len(sequence)
      codes = residues.codes(sequence)
      mask = tables.mask[codes].copy()
      mask[:, : len(residues.BACKBONE)] = True
      if not self.has_side_chains:
        mask[:, len(residues.BACKBONE) :] = False
      square = np.s_[row, :size, :size]
      yield Prediction(
        Chain(
          name,
          codes,
          np.arange(size, dtype=np.int32),
          found['atoms'][row, :size],
          mask,
        ),
        found['plddt'][row, :size],
        found['errors'][square],
        found['contacts'][square],
        found['distances'][square],
        float(found['tm'][row]),
      )


def _by_bucket(lengths: Iterable[int]) -> list[tuple[int, list[int]]]:
  """(size of a bucket, numbers of its chains), the smallest bucket first."""
  found = {}
  for number, length in enumerate(lengths):
    size = next(b for b in BUCKETS if b >= length)
    found.setdefault(size, []).append(number)
  return sorted(found.items())


def _confidence(found: Folded, valid: Array) -> dict[str, Array]:
  """Returns the arrays of a `Prediction` besides its atoms, by name."""
  probability = jax.nn.softmax(found.distogram, axis=-1)
  edges = jnp.linspace(*losses.DISTANCE_EDGES, probability.shape[-1] - 1)
  half = (edges[1] - edges[0]) / 2
  centres = jnp.concatenate([edges - half, edges[-1:] + half])
  near = (centres < CONTACT).astype(jnp.float32)
  return {
    'plddt': losses.expected_plddt(found.plddt),
    'errors': losses.expected_errors(found.errors),
    'contacts': jnp.sum(probability * near, axis=-1),
    'distances': jnp.sum(probability * centres, axis=-1),
    'tm': losses.expected_tm(found.errors, valid),
  }


def unfolded(name: str, sequence: str) -> Chain:
  """A chain with known residues and without known atoms."""
  codes = residues.codes(sequence)
  return Chain(
    name,
    codes,
    np.arange(codes.size, dtype=np.int32),
    np.zeros((codes.size, residues.ATOM14, 3), np.float32),
    np.zeros((codes.size, residues.ATOM14), bool),
  )


def padded(chain: Chain) -> tuple[np.ndarray, ...]:
  """(codes, numbers, atoms, mask) of a chain; the backbone, if it has no more.

  The arrays are padded to the next of `BUCKETS`, since JAX compiles a program
  for each shape.
  """
  size = chain.codes.size
  more = next(b for b in BUCKETS if b >= size) - size
  slots = slice(None if chain.has_side_chains else len(residues.BACKBONE))
  atoms, mask = chain.atoms[:, slots], chain.mask[:, slots]
  return tuple(
    np.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1))
    for x in (chain.codes, chain.numbers, atoms, mask)
  )


def relaxed(chain: Chain, steps: int = RELAX_STEPS) -> Chain:
  """The chain after relaxation, see `moe.objectives.relaxation`.

  Args:
    chain: a chain with all backbone atoms.
    steps: number of steps; 0 changes nothing.
  """
  if not steps:
    return chain
  moved = np.asarray(relaxation.relaxed(*padded(chain), steps))
  atoms = chain.atoms.copy()
  atoms[:, : moved.shape[1]] = moved[: len(atoms)]
  return chain._replace(atoms=atoms)


def load(run: FoldingRun, directory: str) -> FoldingModel:
  """Reads the best step of a run; without scores, its newest sound step.

  Args:
    run: the run, from the configuration in the directory.
    directory: work directory of the run.

  Raises:
    ValueError: if there is no sound checkpoint, or if the best is damaged.
  """
  steps_dir = listing.steps_dir(directory)
  loaded, meta = restore.load_params(
    steps_dir, listing.shared_best_step(steps_dir)
  )
  # A chain is folded on one device, so only this device gets the parameters.
  devices = jax.devices()[:1]
  run = dataclasses.replace(run, mesh=run.mesh.fitted(1))
  functional, _, mesh = run.functional(devices)
  digest = hashlib.sha256()
  for name, array in sorted(restore.leaves(loaded['params']).items()):
    digest.update(name.encode() + np.asarray(array).tobytes())
  name = os.path.basename(os.path.abspath(directory))
  return FoldingModel(
    functional,
    mesh,
    loaded['params'],
    loaded['state']['model'],
    run.ids,
    Origin(f'{name}, step {meta["step"]}', digest.hexdigest()),
    run.recycles,
    run.has_side_chains,
  )


def samples(
  model: FoldingModel,
  sequences: Mapping[str, str],
  counts: tuple[int | None, int],
  memory_limit: float,
  seed: int,
) -> Iterator[Prediction]:
  """Yields one structure of each sequence, or several that differ by dropout.

  Args:
    model: the model.
    sequences: name of a chain -> its residues as one-letter names.
    counts: (recycles as in `FoldingModel.fold`, structures of each sequence).
    memory_limit: GB that the longest sequence may need.
    seed: seed of the first structures; the next ones have seed + 1, and so on.
      Unused for one structure per sequence.

  Raises:
    ValueError: if a number is out of range, or if several structures are asked
      of a model without dropout.
  """
  recycles, num_samples = counts
  bounds.at_least(1, '--samples', num_samples, 'structures of a chain')
  if num_samples == 1:
    yield from model.fold(sequences, recycles, memory_limit)
    return
  if not model.functional.module.has_dropout:
    raise ValueError(
      f'--samples={num_samples} needs a model with dropout, got one without:'
      ' ask for one sample, or train with FOLDING_DROPOUT.'
    )
  for number in range(num_samples):
    for one in model.fold(sequences, recycles, memory_limit, seed + number):
      name = f'{one.chain.name}_sample_{number + 1}'
      yield one._replace(chain=one.chain._replace(name=name))
