"""Memory that a conversion needs beside the model itself, on Linux."""

import gc
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from launch.configs import configuration
from moe.models import hugging_face as sizes_lib
from moe.models.functional import Functional
from moe.objectives import language
from moe.runs import hugging_face

MIB = 2**20
SHARD = 64 * MIB
# The model has 560 MiB. No array exceeds the largest size of a file.
SIZES = {
  'VOCAB_SIZE': 16_000,
  'D_MODEL': 1024,
  'NUM_LAYERS': 8,
  'NUM_HEADS': 8,
  'NUM_KV_HEADS': 4,
  'HEAD_DIM': 128,
  'D_FF': 2048,
  'NUM_EXPERTS': 2,
  'TOP_K': 2,
  'EXPERT_D_FF': 1536,
  'SEQUENCE_LENGTH': 128,
  'TRAIN_STEPS': 1000,
  'LEARNING_RATE': 1e-3,
}
WIRING = ['models/decoder.gin', 'parallel/data.gin', 'tasks/builtin.gin']


def memory(field):
  """Bytes of this process, as Linux counts them."""
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  line = next(line for line in lines if line.startswith(field))
  return int(line.split()[1]) * 1024


def start():
  """Resets the recorded peak of memory, and returns the memory in use."""
  gc.collect()
  pathlib.Path('/proc/self/clear_refs').write_text('5')
  return memory('VmRSS')


@pytest.mark.nightly
def test_neither_direction_needs_more_than_two_files_beside_the_model(tmp_path):
  bindings = [f'{name}={value}' for name, value in SIZES.items()]
  run = configuration.load([*WIRING, 'runs/train.gin'], bindings)
  functional, shapes = Functional(run.model), language.batch_shapes(1, 8)
  init = lambda: functional.init(jax.random.key(0), shapes)[:2]
  params, state = jax.tree.map(
    lambda s: jnp.full(s.shape, 0.5, s.dtype), jax.eval_shape(init)
  )
  size = sum(a.nbytes for a in jax.tree.leaves(jax.block_until_ready(params)))
  assert size > 8 * SHARD
  config = sizes_lib.to_config(run.model, 128, 'float32')
  (tmp_path / 'config.json').write_text(json.dumps(config))
  before = start()
  hugging_face.write_weights(
    run,
    params,
    state,
    str(tmp_path),
    config,
    hugging_face.Options(shard_bytes=SHARD),
  )
  assert memory('VmHWM') - before < 2 * SHARD
  del params
  imported = hugging_face.read_config(str(tmp_path))
  run = configuration.read(*imported.as_gin(['MESH_DATA=1'])).run
  before = start()
  read = hugging_face.read_weights(
    imported, run, str(tmp_path), jax.devices()[:1]
  )
  jax.block_until_ready(read)
  assert memory('VmHWM') - before < size + 2 * SHARD
