"""A run for forecasts. Its state nearly fills the memory of a chip."""

from launch.configs import configuration

FILES = [
  'models/tiny.gin',
  'parallel/data.gin',
  'tasks/builtin.gin',
  'runs/train.gin',
]
# The model has 0.9 billion parameters: 14 GB with moments and gradients. Each
# of 4 chips has 16 GB and stores all of them.
MACROS = {
  'D_MODEL': 1024,
  'NUM_LAYERS': 8,
  'MOE_EVERY': 2,
  'D_FF': 4096,
  'EXPERT_D_FF': 4096,
  'NUM_EXPERTS': 16,
  'NUM_HEADS': 8,
  'NUM_KV_HEADS': 8,
  'HEAD_DIM': 128,
  'VOCAB_SIZE': 16384,
  'DTYPE': "'bfloat16'",
  'REMAT': "'full'",
  'SEQUENCE_LENGTH': 2048,
  'GROUP_SIZE': 1024,
  'BATCH_SIZE': 64,
  'TRAIN_STEPS': 200,
  'LEARNING_RATE': 0.001,
}


def loaded(**macros):
  return configuration.load(
    FILES, [f'{k}={v}' for k, v in (MACROS | macros).items()]
  )
