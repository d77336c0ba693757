"""Small models on real slices: what the tests of the plan compile."""

from launch import config

FILES = [
  'models/tiny.gin',
  'parallel/data.gin',
  'tasks/builtin.gin',
  'runs/train.gin',
]
MODEL = {
  'VOCAB_SIZE': 16384,
  'D_MODEL': 1024,
  'D_FF': 4096,
  'NUM_LAYERS': 4,
  'NUM_HEADS': 8,
  'NUM_KV_HEADS': 8,
  'HEAD_DIM': 128,
  'NUM_EXPERTS': 8,
  'EXPERT_D_FF': 4096,
  'MOE_EVERY': 2,
  'DTYPE': "'bfloat16'",
  'ACTIVATION': "'gelu'",
  'REMAT': "'full'",
  'SEQUENCE_LENGTH': 1024,
  'GROUP_SIZE': 1024,
  'BATCH_SIZE': 64,
  'TRAIN_STEPS': 200,
  'LEARNING_RATE': 0.001,
}
# Name -> (topology, macros).
PLANS = {
  'experts on every chip': (
    'v5p:2x2x1',
    {'MESH_DATA': 1, 'MESH_EXPERT': 4, 'RULES': "'fsdp_over_expert'"},
  ),
  'dense, parameters divided': (
    'v5e:4x4',
    {'MOE_EVERY': 0, 'MESH_DATA': 4, 'MESH_FSDP': 4},
  ),
  'experts beside replicas, after a dense prefix': (
    'v6e:4x4',
    {'MESH_DATA': 2, 'MESH_EXPERT': 8, 'NUM_DENSE_PREFIX': 2},
  ),
  'gated experts, two microbatches': (
    'v4:2x2x4',
    {
      'MESH_DATA': 1,
      'MESH_FSDP': 4,
      'MESH_EXPERT': 4,
      'NUM_MICROBATCHES': 2,
      'ACTIVATION': "'swiglu'",
      'LOSS_CHUNKS': 4,
    },
  ),
  'one key head for four queries, on half chips': (
    'tpu7x:2x2x1',
    {'MESH_DATA': 1, 'MESH_EXPERT': 8, 'NUM_KV_HEADS': 2},
  ),
  'widths divided, keeping products': (
    'v5p:2x2x2',
    {'MESH_DATA': 1, 'MESH_EXPERT': 4, 'MESH_MODEL': 2, 'REMAT': "'dots'"},
  ),
}


def loaded(name: str):
  """(topology, run) of a plan."""
  topology, macros = PLANS[name]
  overrides = [f'{k}={v}' for k, v in (MODEL | macros).items()]
  return topology, config.load(FILES, overrides)
