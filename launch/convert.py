r"""Converts weights to or from Hugging Face: python -m launch.convert ...

  to-hf runs/poems poems_hf
  to-hf runs/poems poems_hf --dtype=bfloat16 --fused
  from-hf Mixtral-8x7B-v0.1 runs/mixtral --gin.MESH_EXPERT=8

moe/checkpoint/IN_AND_OUT.md says what each format can hold.
"""

import argparse
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import configuration, flags, safety
from launch.later import Later

hugging_face = Later('moe.runs.hugging_face')

GIB = 2**30


def parse(
  argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, list[str]]:
  """Parses the command line into (flags, NAME=VALUE texts of --gin. flags)."""
  parser = runtime.parser('convert', __doc__)
  add_verb = flags.add_verbs(parser)
  out = add_verb('to-hf', 'a trained run as a model directory')
  out.add_argument('checkpoint', metavar='RUN', help='or one step in there')
  out.add_argument('directory', metavar='DIR', help='to make')
  text = 'RUN comes from a stranger: it is checked, then read'
  out.add_argument('--untrusted', action='store_true', help=text)
  text = 'of the weights: float32 (default, as in training), bfloat16, float16'
  out.add_argument('--dtype', default='float32', help=text)
  out.add_argument(
    '--fused',
    action='store_true',
    help='the experts of a layer as one array, as transformers 5 holds them; '
    'default: one array an expert',
  )
  out.add_argument(
    '--shard_gib',
    type=float,
    default=2.0,
    help='the most GiB of a file; default: 2',
  )
  into = add_verb('from-hf', 'a model directory as a run')
  into.add_argument('directory', metavar='DIR', help='of the model')
  into.add_argument('workdir', metavar='RUN', help='to make')
  into.add_argument(
    '--gin.NAME=VALUE',
    dest='override',
    help='binds a macro or a parameter, such as the mesh: --gin.MESH_EXPERT=8',
  )
  return flags.parse(parser, argv)


def convert(options: argparse.Namespace, overrides: list[str]) -> int:
  """Converts weights in the direction that the verb names."""
  runtime.set_up_jax()
  if options.verb == 'from-hf':
    theirs = hugging_face.read_config(options.directory)
    read = configuration.read(*theirs.as_gin(overrides))
    params = hugging_face.write_run(
      theirs, read.run, read.text, options.directory, options.workdir
    )
    runtime.log(f'{options.workdir}: step 0, {params:,} parameters')
    return 0
  if overrides:
    raise ValueError('--gin. flags go with from-hf alone.')
  if options.untrusted:
    safety.checkpoint(options.checkpoint)
  shard_bytes = int(options.shard_gib * GIB)
  files = hugging_face.export(
    configuration.load_run(options.checkpoint),
    options.directory,
    hugging_face.Options(options.dtype, options.fused, shard_bytes),
  )
  runtime.log(f'{options.directory}: {", ".join(files)}')
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Converts weights; the exit code is 2 for an error that the user can fix."""
  options, overrides = parse(argv)
  return runtime.run(lambda: convert(options, overrides))


if __name__ == '__main__':
  sys.exit(main())
