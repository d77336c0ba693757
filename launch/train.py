r"""Trains a model: python -m launch.train --gin_file=FILE --workdir=DIR ...

--gin_file=gin_configs/runs/poems_cpu.gin --workdir=runs/poems
--gin_file=A.gin --gin_file=B.gin --gin.TRAIN_STEPS=100 --workdir=runs/b

Later gin files override earlier ones, and --gin.NAME=VALUE overrides them all.
The same command, given again, resumes from the latest checkpoint in DIR.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from launch import runtime, token_stores
from launch.configs import configuration, flags, safety
from launch.later import Later
from moe.data.cache_dir import default_cache_dir
from moe.train import goodput
from tasks import modules

out_of_memory = Later('moe.planning.out_of_memory')
run_page = Later('moe.report.run_page')
bucket = Later('moe.runs.bucket')
folding = Later('moe.runs.folding')
image_tokenizer = Later('moe.runs.image_tokenizer')
preflight = Later('moe.runs.preflight')
training = Later('moe.runs.training')
stores = Later('tasks.pictures.stores')
proteins = Later('tasks.proteins')


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """Parses the command line into (flags, NAME=VALUE texts of --gin. flags)."""
  parser = runtime.parser('train', __doc__)
  add = parser.add_argument
  flags.add_gin_flags(parser, default=[])
  add('--workdir', required=True, metavar='DIR', help='where the run writes')
  add(
    '--dry_run',
    action='store_true',
    help='check the whole run without making arrays, print the model, and stop',
  )
  add(
    '--safe',
    action='store_true',
    help='refuse gin files and an INITIAL_CHECKPOINT that could do harm',
  )
  add(
    '--compiled',
    metavar='FILE',
    help='the training step, which launch.plan compiled for these devices',
  )
  return flags.parse(parser, argv)


def train(args: argparse.Namespace, overrides: list[str], begin: float) -> int:
  """Trains a model; the exit code is 75 if a signal ended the training.

  Args:
    args: the parsed flags.
    overrides: NAME=VALUE texts of --gin. flags.
    begin: when the process began, in seconds of `time.monotonic`.
  """
  if args.safe:
    safety.check(args.gin_file)
  config = configuration.read(args.gin_file, overrides)
  texts = {
    'config.gin': config.text,
    'operative_config.gin': config.operative_text,
  }
  if config.trains == configuration.LANGUAGE_MODEL:
    data = config.run.data
    modules.check_tasks(
      [data.train, *data.evaluation],
      data.cache_dir or default_cache_dir(),
      data.task_modules,
      args.dry_run,
    )
  if '://' not in args.workdir:
    preflight.open_workdir(args.workdir)
  runtime.set_up_jax()
  workdir = bucket.opened(args.workdir, not args.dry_run)
  # Matplotlib is imported when this is called.
  write_report = lambda directory: run_page.write_report(directory)
  differences = configuration.differences(
    config.text, os.path.join(workdir, 'config.gin')
  )
  if config.trains != configuration.LANGUAGE_MODEL:
    other, *given = {
      configuration.IMAGE_TOKENIZER: (image_tokenizer, stores.prepare),
      configuration.FOLDING_MODEL: (folding, proteins.prepare, write_report),
    }[config.trains]
    preflight.check_resumed(config.run, workdir, differences)
    if args.dry_run:
      print(other.describe(config.run), end='')
      return 0
    return other.train(config.run, workdir, texts, *given, args.compiled, begin)
  job = training.prepare(config.run, workdir, differences, args.safe)
  if args.dry_run:
    print(job.description, end='')
    return 0
  with out_of_memory.explained(config.run, job.program):
    return training.train(
      job,
      texts,
      token_stores.prepare,
      write_report,
      args.compiled,
      begin,
    )


def main(argv: Sequence[str] | None = None) -> int:
  """Trains; the exit code is 2 for an error that the user can fix."""
  begin = goodput.process_begin() if argv is None else time.monotonic()
  return runtime.run(lambda: train(*parse(argv), begin))


if __name__ == '__main__':
  sys.exit(main())
