"""Declares tasks of protein chains as tokens: residues, and 3Di letters.

`proteins` predicts residue after residue. In `proteins_masked` each chain is a
block, and a transform hides a part of it. `proteins_3di` reads a chain as a
block and predicts its 3Di letters one by one. In `proteins_3di_at_once` the
letters are a block too. If a transform hides all of them, the model predicts
each letter from the residues alone.

3Di letters describe the structure around each residue (van Kempen et al. 2023,
https://doi.org/10.1038/s41587-023-01773-0). mini3di computes them from the
backbone.

These tasks need NumPy, so `tasks.mixtures` does not declare them: a run sets
TASK_MODULES = ('tasks.chain_tasks',).
"""

import collections
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from moe.data.records import Feature
from moe.modalities import protein
from tasks import (
  codes,
  poems,  # noqa: F401  It declares poems_shi.
  proteins,
  registry,
  splits,
)

# Residues of the longest chain of these tasks.
LONGEST = 255
NUM_LETTERS = 20
_RESIDUES = Feature('residue')
_RESIDUE_BLOCK = Feature('residue', is_block=True)


class ChainRecords:
  """The fit chains of `protein/chains_*.npz`, with their 3Di letters."""

  splits: ClassVar[tuple[str, ...]] = splits.NAMES

  def records(self, split: str) -> Iterator[dict[str, Any]]:
    """{'name', 'codes', 'letters'} of each chain with an empty `why_unfit`.

    Raises:
      ValueError: when the first record is read, if the file is missing.
    """
    chains = proteins.Chains().chains(split)
    return (_record(chain) for chain in chains if not _why_unfit(chain))

  def left_out(self, split: str) -> dict[str, int]:
    """Reason -> number of the chains that `records` leaves out."""
    reasons = map(_why_unfit, proteins.Chains().chains(split))
    return dict(collections.Counter(filter(None, reasons)))

  def files_of(self, split: str) -> list[str]:
    """The files of a split, for `tasks.origin`."""
    return proteins.Chains().files_of(split)


def _why_unfit(chain: protein.Chain) -> str:
  return protein.why_unfit(chain, longest=LONGEST)


def _record(chain: protein.Chain) -> dict[str, Any]:
  return {
    'name': chain.name,
    'codes': chain.codes,
    'letters': letters_3di(chain),
  }


def letters_3di(chain: protein.Chain) -> np.ndarray:
  """The code from 0 to 19 of the 3Di letter of each residue.

  The CB atoms are those that an ideal residue would have. A residue without a
  known backbone gets the letter that mini3di has for no structure, and so do
  the first and the last residue.

  Args:
    chain: a chain of I residues.

  Returns:
    int32 [I].
  """
  # Imported here, since only these tasks need it.
  import mini3di

  atoms = np.where(chain.mask[..., None], chain.atoms, np.nan)
  n, ca, c = (atoms[:, i].astype(np.float64) for i in range(3))
  cb = np.full_like(ca, np.nan)  # mini3di computes the CB atoms.
  states = mini3di.Encoder().encode_atoms(ca, cb, n, c)
  return states.filled().astype(np.int32)


def _residues(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
  return record['codes'], _places(record)


def _with_letters(
  record: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  places = _places(record)
  # The model reads a letter to predict the next one, so the letter has the
  # place of the next one.
  both = np.concatenate([places, places + 1])
  return record['codes'], record['letters'], both


def _places(record: dict[str, Any]) -> np.ndarray:
  """The place of each residue in its chain, uint16 [I], from 1."""
  return np.arange(1, record['codes'].size + 1, dtype=np.uint16)


_WITH_PLACE = ('targets', 'place')
_BOTH = ('inputs', 'targets', 'place')

codes.add_task(
  'proteins',
  ChainRecords(),
  _residues,
  _WITH_PLACE,
  {'targets': _RESIDUES, 'place': Feature()},
)
codes.add_task(
  'proteins_masked',
  ChainRecords(),
  _residues,
  _WITH_PLACE,
  {'targets': _RESIDUE_BLOCK, 'place': Feature()},
)
codes.add_task(
  'proteins_3di',
  ChainRecords(),
  _with_letters,
  _BOTH,
  {
    'inputs': _RESIDUE_BLOCK,
    'targets': Feature('structure'),
    'place': Feature(),
  },
)
codes.add_task(
  'proteins_3di_at_once',
  ChainRecords(),
  _with_letters,
  _BOTH,
  {
    'inputs': _RESIDUE_BLOCK,
    'targets': Feature('structure', is_block=True),
    'place': Feature(),
  },
)
# A quarter of the rows are poems, whatever the sizes of the corpora are.
registry.add_mixture(
  'chains_and_poems',
  ('proteins', 'proteins_3di', 'proteins_3di_at_once', 'poems_shi'),
  (0.2, 0.25, 0.3, 0.25),
)
registry.add_mixture(
  'masked_chains_and_poems', ('proteins_masked', 'poems_shi'), (0.75, 0.25)
)
