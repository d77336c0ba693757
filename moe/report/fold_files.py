"""Writes the files of folded chains."""

import pathlib
from collections.abc import Iterable, Iterator

from moe import atomic_files
from moe.modalities import structure_writing
from moe.modalities.structure_writing import Origin
from moe.report import fold_page
from moe.runs.folded import Prediction


def write(
  directory: pathlib.Path, origin: Origin, found: Iterable[Prediction]
) -> Iterator[str]:
  """Writes each structure as soon as it is predicted, and then the page.

  Args:
    directory: where the files are written.
    origin: the model that folded the chains.
    found: the predictions, one chain after the other.

  Yields:
    A line about each chain's files and about the page, for people.
  """
  directory.mkdir(parents=True, exist_ok=True)
  done = []
  for one in found:
    chain, plddt = one.chain, one.plddt
    for ending, text in (
      ('cif', structure_writing.mmcif_text(chain, plddt, origin)),
      ('pdb', structure_writing.pdb_text(chain, plddt, origin)),
    ):
      atomic_files.write_file(directory / f'{chain.name}.{ending}', text)
    done.append(one)
    atoms = 'all atoms' if chain.has_side_chains else 'backbone only'
    yield (
      f'{directory / chain.name}.cif and .pdb: {chain.codes.size} residues,'
      f' {atoms}, pLDDT {100 * plddt.mean():.1f}, pTM {one.tm:.2f}'
    )
  page = fold_page.write(directory, 'Folded chains', origin, done)
  yield f'page: {page}'
