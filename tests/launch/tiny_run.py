"""Flags of a run that trains in seconds, for tests that kill or move it."""

FLAGS = [
  '--gin_file=gin_configs/runs/quickstart.gin',
  '--gin.D_MODEL=32',
  '--gin.NUM_LAYERS=1',
  '--gin.BATCH_SIZE=4',
  '--gin.SEQUENCE_LENGTH=32',
  '--gin.GROUP_SIZE=32',
  '--gin.MESH_EXPERT=1',
  "--gin.EVAL_TASKS=('builtin_couplets',)",
  '--gin.PROMPTS=()',
]
