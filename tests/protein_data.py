"""Finds the shared protein data, which is not part of the project."""

import os
import pathlib

import numpy as np
import pytest

_BESIDE = pathlib.Path(__file__).parents[2] / 'shared' / 'data'
FOLDER = pathlib.Path(os.environ.get('WUDAO_DATA') or _BESIDE) / 'protein'
has_data = pytest.mark.skipif(
  not FOLDER.is_dir(),
  reason=f'the shared protein data is not at {FOLDER}: set WUDAO_DATA',
)


def case(name):
  """Known inputs, parameters and outputs of a part of AlphaFold 2.

  Returns 'in', 'param' or 'out' -> name -> array.
  """
  with np.load(FOLDER / 'oracle.npz') as file:
    names = [key for key in file.files if key.split('/')[0] == name]
    found = {'in': {}, 'param': {}, 'out': {}}
    for key in names:
      _, kind, field = key.split('/')
      found[kind][field] = file[key]
  return found
