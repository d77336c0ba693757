"""An error of memory names the largest arrays and what to change."""

import re

import jax
import jax.numpy as jnp
import pytest

from moe.planning import out_of_memory
from moe.runs import build
from moe.scale import topology
from tests.planning import cases

pytestmark = pytest.mark.slow

SIZES = {
  'D_MODEL': 64,
  'NUM_LAYERS': 2,
  'D_FF': 128,
  'EXPERT_D_FF': 128,
  'NUM_EXPERTS': 4,
  'NUM_HEADS': 2,
  'NUM_KV_HEADS': 2,
  'HEAD_DIM': 32,
  'VOCAB_SIZE': 4096,
  'REMAT': "'none'",
  'SEQUENCE_LENGTH': 128,
  'GROUP_SIZE': 128,
  'BATCH_SIZE': 64,
  'MESH_DATA': 1,
}


@pytest.fixture(scope='module')
def run():
  return cases.loaded(**SIZES)


@pytest.fixture(scope='module')
def program(run):
  return build.build(run, jax.devices()[:1])


def test_a_real_error_names_the_largest_arrays_and_three_knobs(run, program):
  with (
    pytest.raises(out_of_memory.OutOfMemory) as caught,
    out_of_memory.explained(run, program),
  ):
    jax.jit(lambda: jnp.zeros((2**46,), jnp.float32))().block_until_ready()
  text = str(caught.value)
  # The table of the vocabulary is the largest parameter: 4096 x 64 x 4 bytes.
  assert 'embedding/table float32[4096,64] 0.000977 GiB' in text
  knobs = re.findall(r'--gin\.\w+=', text)
  assert len(knobs) >= 3
  assert '--gin.OPTIMIZER_ON_HOST' not in text  # There is no other memory.
  assert 'launch.plan' in text


def test_other_errors_are_left_alone(run, program):
  with (
    pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'),
    out_of_memory.explained(run, program),
  ):
    raise jax.errors.JaxRuntimeError('INTERNAL: something else')


def test_changes_without_more_arithmetic_come_first(run, program):
  found = out_of_memory.knobs(run, program)
  assert len(found) == 3
  more = [float(re.search(r'FLOPs \+([\d.]+)%', k['effect'])[1]) for k in found]
  assert more == sorted(more)
  assert all(knob['saved_bytes'] > 0 for knob in found)


# The compiler for TPUs lists the temporaries of a program that does not fit.
MESSAGE = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.

  Largest program allocations in hbm:

  1. Size: 32.00G
     Operator: op_name="jit(train_step)/jit(main)/dot_general" id=3
     Shape: f32[65536,131072]{1,0:T(8,128)}
     Unpadded size: 32.00G
     Allocation type: HLO temp
     ==========================

  2. Size: 1.50G
     Shape: bf16[8,1024]{1,0}
"""


def test_the_temporaries_that_the_compiler_lists_are_named(run, program):
  text = out_of_memory.describe(run, program, MESSAGE)
  assert 'main)/dot_general f32[65536,131072] 32.00G' in text
  assert 'array bf16[8,1024] 1.50G' in text


def test_the_slice_of_tpus_is_found_from_their_coordinates():
  pytest.importorskip('libtpu')
  for name in ('v5e:2x2', 'v5p:2x2x1'):
    wanted = topology.parse(name)
    assert out_of_memory._slice_of(topology.devices(wanted)) == wanted


def test_devices_without_coordinates_are_no_slice():
  assert out_of_memory._slice_of(jax.devices()) is None
