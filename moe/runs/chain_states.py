"""Reads states of residues out of the trunk of a trained model."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from moe.data.cache_dir import default_cache_dir
from moe.evaluate.likelihood import Document
from moe.modalities import protein
from moe.modalities.ids import EOS
from moe.modalities.protein import Chain
from moe.parallel import multihost
from moe.runs import chain_documents, folded, folding
from moe.runs.folding import PrepareChains
from moe.runs.folding_run import FoldingRun
from moe.runs.run import TrainedRun

_logger = logging.getLogger(__name__)

# Chains whose lengths are equal when rounded up to a multiple of this share a
# compiled program.
_STEP = 64


class ChainStates(NamedTuple):
  """The states of residues in a trained model, and chains.

  Attributes:
    name: says which states are read, for tables.
    states: chains -> [I, L, D] for each chain, of L layers.
    training: all training chains, also those too long for the run.
    chains: split -> its chains.
  """

  name: str
  states: Callable[[Sequence[Chain]], list[np.ndarray]]
  training: list[Chain]
  chains: Callable[[str], list[Chain]]


def of_folding_model(
  run: FoldingRun, directory: str, prepare_chains: PrepareChains
) -> ChainStates:
  """The states of all layers of the trunk of a folding model.

  Args:
    run: the run, from the configuration in the directory.
    directory: work directory of the run.
    prepare_chains: makes missing stores of chains.
  """
  return ChainStates(
    'layers of the folding trunk, mixed by the probe',
    folded.load(run, directory).states,
    folding.training_chains(run, prepare_chains),
    lambda split: folding.chains_of(
      folding.stores_of(run, prepare_chains), split
    ),
  )


def of_language_model(
  trained: TrainedRun, prepare_chains: PrepareChains
) -> ChainStates:
  """The states of all layers of a language model that reads a chain as a block.

  Args:
    trained: the run.
    prepare_chains: makes missing stores of chains.

  Raises:
    ValueError: if the run has no residues, or reads no blocks.
  """
  module = trained.functional.module
  tables = dict(module.extra_tables)
  longest = min(module.longest_block, tables.get('place', np.inf) - 1)
  if not trained.ids.sizes['residue'] or longest < protein.SHORTEST:
    raise ValueError(
      'The run must have residues among its ids and read chains as blocks, got'
      f' {trained.ids} and LONGEST_BLOCK={module.longest_block}: train with'
      ' runs/chains_cpu.gin.'
    )
  cache_dir = trained.run.data.cache_dir or default_cache_dir()
  stores = prepare_chains(['chains'], protein.LONGEST, cache_dir)

  def chains(split: str) -> list[Chain]:
    found = folding.chains_of(stores, split)
    fit = [chain for chain in found if chain.codes.size <= longest]
    if len(fit) < len(found):
      _logger.info(
        f'{split}: {len(found) - len(fit)} chains of more than {longest}'
        ' residues are left out, since the run cannot read them'
      )
    return fit

  return ChainStates(
    'layers of the language model, mixed by the probe',
    functools.partial(_states, trained),
    chains('train'),
    chains,
  )


def _states(trained: TrainedRun, chains: Sequence[Chain]) -> list[np.ndarray]:
  """The states of each residue after each layer, [I, L, D] for each chain."""
  read, found = jax.jit(trained.functional.after_each_period), {}
  by_length = {}
  for number, chain in enumerate(chains):
    length = -(-chain.codes.size // _STEP)
    by_length.setdefault(length, []).append(number)
  for numbers in by_length.values():
    blocks = [_block(trained, chains[number]) for number in numbers]
    tokens, states = [block.tokens for block in blocks], []
    for batch, size in chain_documents.batches(trained, blocks, tokens):
      with jax.set_mesh(trained.mesh):
        states_BTLD = read(trained.params, trained.state, batch)
      states += list(multihost.whole(states_BTLD)[:size])
    for number, states_TLD in zip(numbers, states, strict=True):
      # The first place reads the begin mark.
      found[number] = states_TLD[1 : 1 + chains[number].codes.size]
  return [found[number] for number in range(len(chains))]


def _block(trained: TrainedRun, chain: Chain) -> Document:
  """A chain as a block, with an end mark."""
  size = chain.codes.size
  tokens = [*trained.ids.ids('residue', chain.codes), EOS]
  record = {
    'tokens': np.array(tokens, np.int32),
    'place': np.append(np.arange(1, size + 1), 0),
    'num_chars': size,
    'num_bytes': size,
  }
  return chain_documents.as_block(chain_documents.document(trained, record))
