"""Writes shardings and collectives of several layouts, for golden files.

After a deliberate change, rewrite the golden files and read their diff:
JAX_PLATFORMS=cpu python -m tests.scale.layouts
"""

import collections
import difflib
import os
import pathlib

from launch.configs import configuration
from moe.runs.build import build

FOLDER = pathlib.Path(__file__).parent / 'goldens'
FILES = [
  'models/tiny.gin',
  'parallel/data.gin',
  'tasks/builtin.gin',
  'runs/train.gin',
]
MODEL = {
  'VOCAB_SIZE': 512,
  'D_MODEL': 64,
  'D_FF': 128,
  'EXPERT_D_FF': 64,
  'NUM_LAYERS': 2,
  'MOE_EVERY': 2,
  'NUM_HEADS': 4,
  'NUM_KV_HEADS': 2,
  'HEAD_DIM': 16,
  'NUM_EXPERTS': 8,
  'SEQUENCE_LENGTH': 64,
  'GROUP_SIZE': 64,
  'BATCH_SIZE': 16,
  'REMAT': "'full'",
  'TRAIN_STEPS': 200,
  'LEARNING_RATE': 0.1,
}
LAYOUTS = {
  'dense_data': {'MOE_EVERY': 0},
  'dense_fsdp': {'MOE_EVERY': 0, 'MESH_DATA': 1, 'MESH_FSDP': 8},
  'sparse_data_expert': {'MESH_DATA': 2, 'MESH_EXPERT': 4},
  'sparse_fsdp_expert': {
    'MESH_DATA': 1,
    'MESH_FSDP': 2,
    'MESH_EXPERT': 4,
    'NUM_MICROBATCHES': 2,
  },
  'sparse_fsdp_over_expert': {
    'MESH_DATA': 1,
    'MESH_EXPERT': 8,
    'RULES': "'fsdp_over_expert'",
    'SHARED_D_FF': 64,
    'LOSS_CHUNKS': 4,
  },
  'sparse_ragged': {
    'MESH_DATA': 2,
    'MESH_EXPERT': 4,
    'moe_layer.MoE.exchange': '@exchange.Ragged',
  },
  'sparse_expert_model': {
    'MESH_DATA': 2,
    'MESH_EXPERT': 2,
    'MESH_MODEL': 2,
    'TIE_EMBEDDINGS': False,
  },
}


def built(name: str):
  """(run, program) of a layout on 8 devices."""
  import jax

  macros = MODEL | LAYOUTS[name]
  run = configuration.load(FILES, [f'{k}={v}' for k, v in macros.items()])
  return run, build(run, jax.devices()[:8])


def shardings(name: str) -> str:
  """Mesh axes of every parameter, its optimizer state and the activations."""
  import jax

  from moe.parallel import rules
  from moe.parallel.shardings import path_name

  run, program = built(name)
  mesh = ' '.join(f'{a}={n}' for a, n in program.mesh.shape.items() if n > 1)
  lines = [f'mesh {mesh}', '', 'activations']
  for axis, where in rules.activation_rules(rules.table(run.rules)):
    lines.append(f'  {axis}: {"+".join(where or ()) or "-"}')
  for title, tree in (
    ('parameters', program.abstract.params),
    ('optimizer', program.abstract.opt_state),
  ):
    lines += ['', title]
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
      spec = [
        '+'.join((e,) if isinstance(e, str) else e) if e else '-'
        for e in leaf.sharding.spec
      ]
      dims = 'x'.join(map(str, leaf.shape))
      lines.append(f'  {path_name(path)} [{dims}]: {" ".join(spec) or "-"}')
  return '\n'.join(lines) + '\n'


def collectives(name: str) -> str:
  """Text with the number and bytes of each kind of collective in a step.

  The collectives of all iterations of a loop are counted.
  """
  from moe.scale import hlo, work

  _, program = built(name)
  lowered = program.train_step.lower(program.abstract, program.batch_shapes)
  compiled = lowered.compile()
  done = work.count(hlo.parse(compiled.as_text()), dict(program.mesh.shape))
  counts, moved = collections.Counter(), collections.Counter()
  for t in done.transfers:
    key = f'{t.kind} over {"+".join(t.axes)}'
    counts[key] += t.times
    moved[key] += round(t.moved) * t.times
  return ''.join(
    f'{key}: {counts[key]} times, {moved[key]} bytes\n'
    for key in sorted(counts)
  )


KINDS = {'shardings': shardings, 'collectives': collectives}


def difference(kind: str, name: str) -> str:
  """The difference from the golden file as text; '' if the two are equal."""
  path = FOLDER / f'{name}.{kind}.txt'
  wanted = path.read_text() if path.exists() else ''
  got = KINDS[kind](name)
  return ''.join(
    difflib.unified_diff(
      wanted.splitlines(True), got.splitlines(True), path.name, 'now', n=0
    )
  )


def main() -> None:
  """Writes all golden files."""
  import jax

  jax.config.update('jax_num_cpu_devices', 8)
  for name in LAYOUTS:
    for kind, describe in KINDS.items():
      (FOLDER / f'{name}.{kind}.txt').write_text(describe(name))


if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  main()
