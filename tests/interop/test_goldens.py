"""Models of transformers give the same logits here, and are written unchanged.

`goldens/` has the results of transformers, which `make_goldens.py` has stored.
"""

import json

import jax
import numpy as np
import pytest

from launch.configs import configuration
from moe.checkpoint import safetensors_file
from moe.runs import hugging_face
from tests.interop import answers, tiny_models

pytestmark = pytest.mark.slow

NAMES = list(tiny_models.CONFIGS)
FUSED = [n for n in NAMES if 'moe' in n or n[:4] in ('mixt', 'deep')]


def read(directory, devices=1):
  """Imports a model directory: (imported configuration, run, params, state)."""
  imported = hugging_face.read_config(str(directory))
  mesh = ['MESH_DATA=1'] if devices == 1 else ['MESH_DATA=2', 'MESH_EXPERT=2']
  run = configuration.read(*imported.as_gin(mesh)).run
  return (
    imported,
    run,
    *hugging_face.read_weights(
      imported, run, str(directory), jax.devices()[:devices]
    ),
  )


def write(directory, golden, is_fused=False):
  directory.mkdir(exist_ok=True)
  (directory / 'config.json').write_text(json.dumps(golden['config']))
  if is_fused:
    tiny_models.write_fused(directory, golden)
  else:
    tiny_models.write(directory, golden['shapes'])


@pytest.fixture(scope='session')
def theirs(tmp_path_factory):
  """A function: name of a golden -> (golden, directory of its model)."""
  made = {}

  def make(name):
    if name not in made:
      made[name] = tmp_path_factory.mktemp('theirs') / name
      write(made[name], tiny_models.golden(name))
    return tiny_models.golden(name), made[name]

  return make


@pytest.mark.parametrize('name', NAMES)
def test_logits_and_greedy_text_are_those_of_transformers(theirs, name):
  golden, directory = theirs(name)
  _, run, params, state = read(directory)
  num_greedy = len(golden['greedy'])
  logits, greedy = answers.answer(
    run.model, params, state, golden['tokens'], num_greedy
  )
  assert np.abs(golden['logits']).max() > 0.5
  np.testing.assert_allclose(logits, golden['logits'], atol=1e-4, rtol=0)
  np.testing.assert_array_equal(greedy, golden['greedy'])


@pytest.mark.parametrize(
  ('name', 'is_fused'),
  [(n, False) for n in NAMES] + [(n, True) for n in FUSED],
)
def test_a_model_is_written_as_it_was_read(theirs, tmp_path, name, is_fused):
  golden, directory = theirs(name)
  imported, run, params, state = read(directory)
  options = hugging_face.Options(is_fused=is_fused)
  config = {'model_type': imported.model_type}
  hugging_face.write_weights(run, params, state, str(tmp_path), config, options)
  path = tmp_path / 'model.safetensors'
  entries = safetensors_file.read_header(path)
  shapes = golden['fused_shapes' if is_fused else 'shapes']
  assert {n: list(e.shape) for n, e in entries.items()} == shapes
  other = tmp_path / 'as_transformers_wrote_it'
  write(other, golden, is_fused)
  wanted = safetensors_file.read_header(other / 'model.safetensors')
  for name, entry in entries.items():
    array = safetensors_file.read_array(path, entry)
    theirs_array = safetensors_file.read_array(
      other / 'model.safetensors', wanted[name]
    )
    np.testing.assert_array_equal(array, theirs_array, err_msg=name)


@pytest.mark.parametrize('name', FUSED)
def test_both_layouts_of_experts_give_the_same_arrays(theirs, tmp_path, name):
  golden, directory = theirs(name)
  write(tmp_path, golden, is_fused=True)
  jax.tree.map(
    np.testing.assert_array_equal, read(tmp_path)[2:], read(directory)[2:]
  )


def test_a_mesh_of_four_devices_gets_the_same_arrays(theirs):
  _, directory = theirs('deepseek_v3')
  one, four = read(directory)[2:], read(directory, devices=4)[2:]
  jax.tree.map(np.testing.assert_array_equal, one, four)
  placed = four[0]['stack']['periods']['block_0']['moe']['w_up_EDF']
  assert len(placed.sharding.device_set) == 4
  # Each device has 4 of 8 experts.
  assert placed.addressable_shards[0].data.shape[1] == 4


def test_exchanged_experts_are_noticed(theirs, tmp_path):
  golden, _ = theirs('mixtral')
  path = tmp_path / 'model.safetensors'
  write(tmp_path, golden)
  entries = safetensors_file.read_header(path)
  content = bytearray(path.read_bytes())
  for matrix in ('w1', 'w2', 'w3'):
    name = 'model.layers.0.block_sparse_moe.experts.{}.' + matrix + '.weight'
    spans = [
      slice(e.start, e.start + e.num_bytes)
      for e in (entries[name.format(i)] for i in (0, 1))
    ]
    content[spans[0]], content[spans[1]] = content[spans[1]], content[spans[0]]
  path.write_bytes(content)
  _, run, params, state = read(tmp_path)
  logits, _ = answers.answer(run.model, params, state, golden['tokens'])
  assert np.abs(logits - golden['logits']).max() > 1e-2


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda s: s.pop('model.norm.weight'), 'model.norm.weight is missing'),
    (lambda s: s.update(more=[2]), 'more has no use'),
    (
      lambda s: s.update({'lm_head.weight': [40, 15]}),
      r'lm_head.weight is \(40, 15\) and must be \(40, 16\)',
    ),
  ],
)
def test_an_array_too_few_or_too_many_is_named(tmp_path, change, message):
  golden = tiny_models.golden('llama')
  shapes = dict(golden['shapes'])
  change(shapes)
  write(tmp_path, golden | {'shapes': shapes})
  with pytest.raises(ValueError, match=message):
    read(tmp_path)
