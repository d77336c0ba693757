"""Exports runs to Hugging Face's formats, and imports models from them."""

import logging
import math
import os
import pathlib
import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np

from moe import atomic_files, json_text
from moe.checkpoint import hugging_face as arrays_lib
from moe.checkpoint import hugging_face_files, listing, restore
from moe.checkpoint.save import Checkpointer
from moe.data.store import VOCABULARY
from moe.modalities import hugging_face_tokenizer
from moe.modalities.text import Vocabulary
from moe.models import hugging_face as sizes_lib
from moe.models import hugging_face_import
from moe.models.hugging_face_import import Imported
from moe.parallel.shardings import path_name
from moe.runs import build, model_card, trained
from moe.runs.run import Run, TrainedRun
from moe.types import PyTree

_LOG = logging.getLogger(__name__)

_FORMAT_DTYPES = {'float32': 'F32', 'bfloat16': 'BF16', 'float16': 'F16'}
_MAX_CONFIG_BYTES = 10_000_000


class Options(NamedTuple):
  """Options of the written files.

  Attributes:
    dtype: dtype of the weights: 'float32', 'bfloat16' or 'float16'. Router
      biases stay float32.
    is_fused: True writes all experts of a layer as one array, the layout that
      transformers 5 has in memory. False writes an array for each expert, which
      most programs expect.
    shard_bytes: largest size of a file of weights, in bytes. A larger array
      gets its own file.
  """

  dtype: str = 'float32'
  is_fused: bool = False
  shard_bytes: int = 2 * 2**30


def export(run: TrainedRun, directory: str, options: Options) -> list[str]:
  """Writes a trained run as a model directory that transformers can read.

  Args:
    run: the trained run, on any devices.
    directory: a directory that is new or empty.
    options: options of the files.

  Returns:
    Names of the files, weights first.

  Raises:
    ValueError: if the dtype is unknown, if the format cannot describe the model
      or its ids, or if the directory has files.
  """
  config = config_of(run, options.dtype)
  if not run.ids.is_text:
    raise ValueError(
      'Data.ranges must be () for an export, got other ids than text: the'
      " tokenizers of Hugging Face's formats have only text."
    )
  os.makedirs(directory, exist_ok=True)
  if os.listdir(directory):
    raise ValueError(f'{directory} must be empty: choose another directory.')
  length = run.run.data.sequence_length
  files = write_weights(
    run.run, run.params, run.state, directory, config, options
  )
  vocabulary = run.vocabulary
  ends = {
    'bos_token_id': vocabulary.pad,
    'eos_token_id': vocabulary.eos,
    'pad_token_id': vocabulary.eos,
  }
  contents = {
    'config.json': config | ends,
    'generation_config.json': ends,
    **hugging_face_tokenizer.files(vocabulary, length),
  }
  for name, content in contents.items():
    atomic_files.write_json(os.path.join(directory, name), content)
  folder = os.path.basename(os.path.abspath(directory))
  texts = {
    'tokenizer.model': pathlib.Path(vocabulary.path).read_bytes(),
    'README.md': model_card.card(run, config['model_type'], folder),
    'LICENSE': _licence(),
  }
  for name, content in texts.items():
    atomic_files.write_file(os.path.join(directory, name), content)
  return [*files, *contents, *texts]


def config_of(run: TrainedRun, dtype: str) -> dict[str, Any]:
  """The entries of config.json, without the ids of special tokens."""
  if dtype not in _FORMAT_DTYPES:
    raise ValueError(
      f'dtype={dtype!r} must be one of {", ".join(_FORMAT_DTYPES)}.'
    )
  length = run.run.data.sequence_length
  return sizes_lib.to_config(run.run.model, length, dtype)


def write_weights(
  run: Run,
  params: PyTree,
  state: PyTree,
  directory: str,
  config: dict[str, Any],
  options: Options,
) -> list[str]:
  """Writes the safetensors files of a model; see `export`."""
  leaves = restore.leaves(params) | restore.leaves(state)
  arrays = {p: a for p, a in leaves.items() if not p.startswith('ahead/')}
  if len(arrays) < len(leaves):
    _LOG.info('The block that predicts two tokens ahead is left out.')
  found = sizes_lib.sizes(run.model)
  for path, factor in sizes_lib.fold(run.model, arrays).items():
    arrays[path] = arrays[path].astype(np.float32) * np.float32(factor)
  tensors = arrays_lib.plan(
    config['model_type'],
    {path: array.shape for path, array in arrays.items()},
    options.is_fused and 'NUM_EXPERTS' in found,
    found.get('ROPE_DIM', 0),
  )
  dtype = _FORMAT_DTYPES[options.dtype]
  return hugging_face_files.save(
    directory, tensors, arrays, dtype, options.shard_bytes
  )


def _licence() -> str:
  """The text of Apache-2.0, from the source tree or the installed package."""
  path = pathlib.Path(__file__).parents[2] / 'LICENSE'
  if path.is_file():
    return path.read_text(encoding='utf-8')
  return metadata.distribution('wudao-moe').read_text('licenses/LICENSE')


def read_config(directory: str) -> Imported:
  """Reads the configuration of a model directory in a Hugging Face format.

  Raises:
    ValueError: if there is no config.json, if it is no JSON object, or if it
      describes a model that we do not have.
  """
  path = os.path.join(directory, 'config.json')
  try:
    with open(path, 'rb') as f:
      content = f.read(_MAX_CONFIG_BYTES)
    config = json_text.parse(content)
    if not isinstance(config, dict):
      raise ValueError('it has no fields')
    return hugging_face_import.from_config(config)
  except FileNotFoundError as error:
    raise ValueError(
      f'{directory} must be a model directory of transformers, got one without'
      ' config.json.'
    ) from error
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def read_weights(
  imported: Imported,
  run: Run,
  directory: str,
  devices: Sequence[jax.Device] | None = None,
) -> tuple[PyTree, PyTree]:
  """Reads (params, state) of a Hugging Face model onto the mesh of a run.

  Args:
    imported: the configuration, from `read_config`.
    run: the run that the bindings of `imported` describe.
    directory: directory of the files.
    devices: devices of the mesh; None takes all.

  Raises:
    ValueError: if a file is damaged, if there are fewer arrays than layers or
      experts, or if an array is missing, has no use or has another shape.
  """
  devices = list(devices or jax.devices())
  found = {
    name: entry
    for name, entry in hugging_face_files.find(directory).items()
    if not _is_extra(name, imported)
  }
  is_fused = hugging_face_files.is_fused(found)
  for macro in ('NUM_LAYERS', *(() if is_fused else ('NUM_EXPERTS',))):
    # `plan` lists as many arrays as config.json demands. A huge number there
    # would fill the memory, so we first compare it with the number of arrays.
    if imported.bindings.get(macro, 0) > len(found):
      raise ValueError(
        f'the {len(found)} arrays of {directory} are too few for'
        f' {macro}={imported.bindings[macro]} in its config.json.'
      )
  _, table, mesh = build.place_model(run, devices)
  shapes = trained.placed_shapes(run, table, mesh)
  wanted = restore.leaves(shapes['params']) | restore.leaves(shapes['state'])
  tensors = arrays_lib.plan(
    imported.model_type,
    {path: shape.shape for path, shape in wanted.items()},
    is_fused,
    imported.rope_dim,
  )
  hugging_face_files.check(directory, tensors, found)
  arrays = hugging_face_files.load(tensors, found, wanted)
  fill = lambda tree: jax.tree_util.tree_map_with_path(
    lambda path, _: arrays[path_name(path)], tree
  )
  return fill(shapes['params']), fill(shapes['state'])


def _is_extra(name: str, imported: Imported) -> bool:
  """Whether an array belongs to a layer for multi-token prediction."""
  number = re.match(r'model\.layers\.(\d{1,9})\.', name)
  past = number and int(number.group(1)) - imported.bindings['NUM_LAYERS']
  return past is not None and 0 <= past < imported.num_extra_layers


def write_run(
  imported: Imported, run: Run, text: str, directory: str, workdir: str
) -> int:
  """Writes a Hugging Face model as step 0 of a new run.

  Args:
    imported: the configuration, from `read_config`.
    run: the run that the bindings of `imported` describe.
    text: text of the run's config.gin.
    directory: directory of the model.
    workdir: directory of the run, which must be new or empty.

  Returns:
    The number of parameters.

  Raises:
    ValueError: in the cases of `read_weights`, or if the work directory has
      files.
  """
  if os.path.isdir(workdir) and os.listdir(workdir):
    raise ValueError(f'{workdir} must be empty: choose another --workdir.')
  params, state = read_weights(imported, run, directory)
  os.makedirs(workdir, exist_ok=True)
  if imported.num_extra_layers:
    _LOG.info(
      '%d layer(s) that predict further tokens are left out.',
      imported.num_extra_layers,
    )
  meta = {'vocabulary_sha256': _copy_vocabulary(directory, workdir)}
  atomic_files.write_file(os.path.join(workdir, 'config.gin'), text)
  saver = Checkpointer(listing.steps_dir(workdir))
  saver.save(0, {'params': params, 'state': state}, meta)
  saver.close()
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _copy_vocabulary(directory: str, workdir: str) -> str | None:
  """Copies tokenizer.model, and returns its SHA-256.

  If `Vocabulary` refuses the file, nothing is copied and the result is None.
  """
  path = os.path.join(directory, 'tokenizer.model')
  try:
    vocabulary = Vocabulary(path)
  except ValueError as error:
    _LOG.warning(
      'No vocabulary is written, so only programs that pass token ids can use'
      ' this run: %s',
      error,
    )
    return None
  atomic_files.write_file(
    os.path.join(workdir, VOCABULARY), pathlib.Path(path).read_bytes()
  )
  return vocabulary.sha256
