"""Measures the memory that a conversion needs beside the model, on Linux."""

import gc
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.configs import configuration
from moe.checkpoint import hugging_face as arrays_lib
from moe.checkpoint import hugging_face_files, restore
from moe.models import hugging_face as sizes_lib
from moe.models.functional import Functional
from moe.objectives import language
from moe.runs import build, hugging_face, trained

ROOT = pathlib.Path(__file__).parents[2]
MIB = 2**20
SHARD = 96 * MIB
# The model has 447 MiB. No array is larger than a file may be.
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
  """A memory count of this process in bytes, such as 'VmRSS' or 'VmHWM'."""
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  line = next(line for line in lines if line.startswith(field))
  return int(line.split()[1]) * 1024


def start():
  """Resets the peak of memory that Linux records; returns the bytes in use."""
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
  assert size > 4 * SHARD
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


# Bytes of a file: the model of 2 GB has four files.
COMMAND_SHARD = 512 * MIB
# A model with 17 of these layers has 1,962 MiB, most of it in three of our
# arrays.
LAYER = {
  'vocab_size': 16_000,
  'hidden_size': 1024,
  'intermediate_size': 2048,
  'num_attention_heads': 8,
  'num_key_value_heads': 4,
  'head_dim': 128,
  'max_position_embeddings': 128,
  'rms_norm_eps': 1e-6,
  'model_type': 'qwen3_moe',
  'num_experts': 8,
  'num_experts_per_tok': 2,
  'moe_intermediate_size': 1024,
  'norm_topk_prob': True,
}


def write_model(directory, vocabulary, **sizes):
  """Writes a model of weights 0.01; returns the bytes that the weights have."""
  directory.mkdir()
  text = json.dumps(LAYER | sizes)
  (directory / 'config.json').write_text(text)
  (directory / 'tokenizer.model').write_bytes(vocabulary.read_bytes())
  imported = hugging_face.read_config(str(directory))
  run = configuration.read(*imported.as_gin([])).run
  _, table, mesh = build.place_model(run, jax.devices()[:1])
  shapes = restore.leaves(trained.placed_shapes(run, table, mesh)['params'])
  tensors = arrays_lib.plan(
    'qwen3_moe', {path: shape.shape for path, shape in shapes.items()}, False
  )
  arrays = {
    path: np.broadcast_to(np.float32(0.01), shape.shape)
    for path, shape in shapes.items()
  }
  hugging_face_files.save(directory, tensors, arrays, 'F32', COMMAND_SHARD)
  return sum(shape.size * 4 for shape in shapes.values())


# This program runs launch.convert, and prints the peak of its memory in bytes.
PEAK = f"""
import pathlib, sys
sys.path.insert(0, {str(ROOT)!r})
from launch import convert
assert convert.main(sys.argv[1:]) == 0
for line in pathlib.Path('/proc/self/status').read_text().splitlines():
  if line.startswith('VmHWM'):
    print(int(line.split()[1]) * 1024)
"""


def peak(*words):
  """Runs `launch.convert` in a new process; returns peak memory in bytes."""
  command = [sys.executable, '-c', PEAK, *map(str, words)]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  return int(done.stdout.split()[-1])


@pytest.mark.nightly
def test_whole_commands_need_two_files_beside_a_model_of_2_gb(
  run_directory, tmp_path
):
  vocabulary = run_directory / 'vocabulary.model'
  least = {'hidden_size': 16, 'num_hidden_layers': 1, 'vocab_size': 2000}
  peaks, size = {}, 0
  for name, sizes in (('tiny', least), ('large', {'num_hidden_layers': 17})):
    theirs, ours = tmp_path / name, tmp_path / f'{name}_run'
    size = write_model(theirs, vocabulary, **sizes)
    shard = f'--shard_gib={COMMAND_SHARD / 2**30}'
    peaks[name] = (
      peak('from-hf', theirs, ours, '--gin.MESH_DATA=1'),
      peak('to-hf', ours, tmp_path / f'{name}_again', shard),
    )
  assert size > 1900 * MIB
  for large, tiny in zip(peaks['large'], peaks['tiny'], strict=True):
    beside = large - tiny - size
    print(f'{beside / MIB:,.0f} MiB beside a model of {size / MIB:,.0f} MiB')
    assert beside < 2 * COMMAND_SHARD
