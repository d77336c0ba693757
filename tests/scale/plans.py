"""Small models on TPU slices, which the tests of memory compile."""

from launch.configs import configuration

FILES = [
  'models/tiny.gin',
  'parallel/data.gin',
  'tasks/builtin.gin',
  'runs/train.gin',
]
MODEL = {
  'VOCAB_SIZE': 32768,
  'D_MODEL': 2048,
  'D_FF': 8192,
  'NUM_LAYERS': 8,
  'NUM_HEADS': 16,
  'NUM_KV_HEADS': 16,
  'HEAD_DIM': 128,
  'NUM_EXPERTS': 8,
  'EXPERT_D_FF': 8192,
  'MOE_EVERY': 2,
  'DTYPE': "'bfloat16'",
  'ACTIVATION': "'gelu'",
  'REMAT': "'full'",
  'LOSS_CHUNKS': 8,
  'SEQUENCE_LENGTH': 2048,
  'GROUP_SIZE': 2048,
  'BATCH_SIZE': 64,
  'TRAIN_STEPS': 200,
  'LEARNING_RATE': 0.001,
}
SMALL = {
  'VOCAB_SIZE': 16384,
  'D_MODEL': 1024,
  'D_FF': 4096,
  'NUM_LAYERS': 4,
  'NUM_HEADS': 8,
  'NUM_KV_HEADS': 8,
  'EXPERT_D_FF': 4096,
  'SEQUENCE_LENGTH': 1024,
  'GROUP_SIZE': 1024,
}
# Name -> (topology, macros). The prediction does not include the program's own
# code, which takes 6% of the peak for a `SMALL` model, and 1% for the others.
PLANS = {
  'experts on every chip': (
    'v5p:2x2x1',
    {'MESH_DATA': 1, 'MESH_EXPERT': 4, 'RULES': "'fsdp_over_expert'"},
  ),
  'dense, parameters divided, one piece of the loss': (
    'v5e:4x4',
    SMALL | {'MOE_EVERY': 0, 'MESH_DATA': 4, 'MESH_FSDP': 4, 'LOSS_CHUNKS': 1},
  ),
  'experts beside replicas, after a dense prefix, keeping attention': (
    'v6e:4x4',
    SMALL
    | {
      'MESH_DATA': 2,
      'MESH_EXPERT': 8,
      'NUM_DENSE_PREFIX': 2,
      'REMAT': "'attention'",
    },
  ),
  'gated experts, two microbatches': (
    'v4:2x2x4',
    SMALL
    | {
      'MESH_DATA': 1,
      'MESH_FSDP': 4,
      'MESH_EXPERT': 4,
      'NUM_MICROBATCHES': 2,
      'ACTIVATION': "'swiglu'",
      'LOSS_CHUNKS': 4,
    },
  ),
  'one key head for four queries, on half chips, keeping all': (
    'tpu7x:2x2x1',
    {
      'MESH_DATA': 1,
      'MESH_EXPERT': 8,
      'NUM_KV_HEADS': 4,
      'REMAT': "'none'",
    },
  ),
  'widths divided, keeping products': (
    'v5p:2x2x2',
    {'MESH_DATA': 1, 'MESH_EXPERT': 4, 'MESH_MODEL': 2, 'REMAT': "'dots'"},
  ),
}
# The tests of these plans are slow, those of the others nightly.
QUICK = (
  'dense, parameters divided, one piece of the loss',
  'gated experts, two microbatches',
)


def loaded(name: str):
  """(topology, run) of a plan by its name."""
  topology, macros = PLANS[name]
  overrides = [f'{k}={v}' for k, v in (MODEL | macros).items()]
  return topology, configuration.load(FILES, overrides)
