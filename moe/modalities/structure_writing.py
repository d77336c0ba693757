"""Writes computed structures as mmCIF (ModelCIF) and as PDB.

The mmCIF file has pLDDT x 100 in the B factors and in `_ma_qa_metric_local`. In
`_software` it has the name and the hash of the model. It says that the
structure was computed (ModelCIF, Vallat et al. 2023,
https://doi.org/10.1016/j.jmb.2023.168021).
"""

import io
from typing import NamedTuple

import numpy as np

from moe.modalities import residues
from moe.modalities.protein import Chain

_ONE_CHAIN = 'A'


class Origin(NamedTuple):
  """The model that made a structure.

  Attributes:
    model: name of the run and its step.
    sha256: hash of the model's parameters.
    relax_steps: steps of relaxation; 0 if the model's structure is written.
  """

  model: str
  sha256: str
  relax_steps: int = 0


def _atoms(chain: Chain, plddt_I: np.ndarray):
  """Biotite's array of the known atoms."""
  # The import of biotite takes a second, and most programs write no structure.
  from biotite import structure

  names = [*residues.NAMES, 'UNK']
  slots = residues.residues().atoms
  places = np.argwhere(chain.mask)
  made = structure.AtomArray(len(places))
  made.coord = chain.atoms[chain.mask].astype(np.float32)
  rows = places[:, 0]
  made.chain_id[:] = _ONE_CHAIN
  made.res_id[:] = rows + 1
  made.res_name[:] = [names[chain.codes[row]] for row in rows]
  made.atom_name[:] = [
    (slots[chain.codes[row]] or residues.BACKBONE)[slot] for row, slot in places
  ]
  made.element[:] = [name[0] for name in made.atom_name]
  made.set_annotation('b_factor', np.round(100 * plddt_I[rows], 2))
  made.set_annotation('occupancy', np.ones(len(rows)))
  return made


def pdb_text(chain: Chain, plddt_I: np.ndarray, origin: Origin) -> str:
  """The text of a PDB file, with pLDDT x 100 in the column of the B factor.

  Args:
    chain: the predicted chain.
    plddt_I: pLDDT of each residue, from 0 to 1.
    origin: the model that made the structure.
  """
  from biotite.structure.io import pdb  # The import takes a second.

  file = pdb.PDBFile()
  file.set_structure(_atoms(chain, plddt_I))
  buffer = io.StringIO()
  file.write(buffer)
  head = [
    'HEADER    COMPUTED MODEL',
    f'TITLE     COMPUTED MODEL OF {chain.name[:48]}',
    'REMARK   1 THIS STRUCTURE WAS COMPUTED, NOT MEASURED.',
    f'REMARK   1 MODEL {origin.model[:60]}',
    f'REMARK   1 SHA-256 {origin.sha256[:60]}',
    'REMARK   1 THE B FACTOR IS PLDDT X 100.',
  ]
  if origin.relax_steps:
    head.append(f'REMARK   1 RELAXED IN {origin.relax_steps} STEPS.')
    head.append('REMARK   1 PLDDT IS OF THE STRUCTURE BEFORE.')
  if not chain.has_side_chains:
    head.append('REMARK   1 THE FILE HOLDS THE BACKBONE ONLY.')
  return '\n'.join(head) + '\n' + buffer.getvalue().rstrip() + '\nTER\nEND\n'


def mmcif_text(chain: Chain, plddt_I: np.ndarray, origin: Origin) -> str:
  """The text of an mmCIF file with the categories of ModelCIF.

  Args:
    chain: the predicted chain.
    plddt_I: pLDDT of each residue, from 0 to 1.
    origin: the model that made the structure.
  """
  from biotite.structure.io import pdbx  # The import takes a second.

  file = pdbx.CIFFile()
  pdbx.set_structure(file, _atoms(chain, plddt_I), data_block='computed_model')
  block = file.block
  names = [*residues.NAMES, 'UNK']
  size = chain.codes.size
  count = [str(i + 1) for i in range(size)]
  comp = [names[code] for code in chain.codes]
  title = f'Computed model of {chain.name}'
  if not chain.has_side_chains:
    title += ', backbone only'
  made = 'Structure prediction'
  if origin.relax_steps:
    made += f', then {origin.relax_steps} steps of relaxation'
  tables = {
    'entry': {'id': ['computed_model']},
    'struct': {'entry_id': ['computed_model'], 'title': [title]},
    'exptl': {'entry_id': ['computed_model'], 'method': ['THEORETICAL MODEL']},
    'entity': {'id': ['1'], 'type': ['polymer'], 'src_method': ['man']},
    'entity_poly': {
      'entity_id': ['1'],
      'type': ['polypeptide(L)'],
      'pdbx_seq_one_letter_code': [chain.sequence],
      'pdbx_strand_id': [_ONE_CHAIN],
    },
    'entity_poly_seq': {
      'entity_id': ['1'] * size,
      'num': count,
      'mon_id': comp,
    },
    'struct_asym': {'id': [_ONE_CHAIN], 'entity_id': ['1']},
    'software': {
      'pdbx_ordinal': ['1'],
      'name': [origin.model],
      'version': [origin.sha256],
      'type': ['package'],
      'description': [made],
      'classification': ['other'],
    },
    'ma_software_group': {
      'ordinal_id': ['1'],
      'group_id': ['1'],
      'software_id': ['1'],
    },
    'ma_data': {
      'id': ['1'],
      'name': ['Model'],
      'content_type': ['model coordinates'],
    },
    'ma_model_list': {
      'ordinal_id': ['1'],
      'model_id': ['1'],
      'model_group_id': ['1'],
      'model_name': ['computed model'],
      'data_id': ['1'],
      'model_type': ['Ab initio model'],
    },
    'ma_qa_metric': {
      'id': ['1', '2'],
      'name': ['pLDDT', 'pLDDT'],
      'mode': ['global', 'local'],
      'type': ['pLDDT', 'pLDDT'],
      'software_group_id': ['1', '1'],
    },
    'ma_qa_metric_global': {
      'ordinal_id': ['1'],
      'model_id': ['1'],
      'metric_id': ['1'],
      'metric_value': [f'{100 * plddt_I.mean():.2f}'],
    },
    'ma_qa_metric_local': {
      'ordinal_id': count,
      'model_id': ['1'] * size,
      'label_asym_id': [_ONE_CHAIN] * size,
      'label_seq_id': count,
      'label_comp_id': comp,
      'metric_id': ['2'] * size,
      'metric_value': [f'{100 * x:.2f}' for x in plddt_I],
    },
  }
  for name, columns in tables.items():
    block[name] = pdbx.CIFCategory(columns)
  buffer = io.StringIO()
  file.write(buffer)
  return buffer.getvalue()
