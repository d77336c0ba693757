r"""Trains a model: python -m launch.train --gin_file=FILE --workdir=DIR .

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
from launch.configs import flags
from moe.data.cache_dir import default_cache_dir


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """Command-line flags, and the bindings of --gin. flags."""
  parser = argparse.ArgumentParser(
    prog='python -m launch.train',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  flags.add_gin_flags(parser, default=[])
  add('--workdir', required=True, metavar='DIR', help='where the run writes')
  add(
    '--dry_run',
    action='store_true',
    help='check the whole run without making arrays, print the model, and stop',
  )
  add(
    '--compiled',
    metavar='FILE',
    help='the training step, which launch.plan compiled for these devices',
  )
  return flags.parse(parser, argv)


def train(args: argparse.Namespace, overrides: list[str]) -> int:
  """Trains; the exit code is 0, or 75 after a signal to end."""
  begin = time.monotonic()
  # Imported here, since --help must answer at once.
  from launch.configs import configuration

  config = configuration.read(args.gin_file, overrides)
  texts = {
    'config.gin': config.text,
    'operative_config.gin': config.operative_text,
  }
  # Imported here, since --help must answer at once.
  from moe.runs.run import Run

  if not isinstance(config.run, Run):
    return train_other(args, config.run, texts)
  data = config.run.data
  token_stores.check_tasks(
    [data.train, *data.evaluation],
    data.cache_dir or default_cache_dir(),
    data.task_modules,
    args.dry_run,
  )
  # Imported here, since a misspelt name need not wait for Orbax.
  from moe.runs import preflight, training

  preflight.open_workdir(args.workdir)
  runtime.set_up_jax()
  differences = configuration.differences(
    config.text, os.path.join(args.workdir, 'config.gin')
  )
  job = training.prepare(config.run, args.workdir, differences)
  if args.dry_run:
    print(job.description, end='')
    return 0
  return training.train(
    job, texts, token_stores.prepare, write_report, args.compiled, begin
  )


def train_other(
  args: argparse.Namespace,
  run: 'AnyRun',  # noqa: F821  See `launch.configs.configuration`.
  texts: dict[str, str],
) -> int:
  """Trains an image tokenizer or a folding model."""
  # Imported here, since runs of language models read neither.
  from moe.runs import (
    folding,
    folding_run,
    image_tokenizer,
    preflight,
    tokenizer_run,
  )
  from tasks import proteins
  from tasks.pictures import stores

  preflight.open_workdir(args.workdir)
  runtime.set_up_jax()
  is_folding = isinstance(run, folding_run.FoldingRun)
  if args.dry_run:
    describe = (folding_run if is_folding else tokenizer_run).describe
    print(describe(run), end='')
    return 0
  if is_folding:
    return folding.train(run, args.workdir, texts, proteins.prepare)
  return image_tokenizer.train(run, args.workdir, texts, stores.prepare)


def write_report(workdir: str) -> str:
  """Writes the page about a run that has ended; returns its path."""
  # Here, since figures take a second to import, and a run starts without them.
  from moe.report import run_page

  return run_page.write_report(workdir)


def main(argv: Sequence[str] | None = None) -> int:
  """Trains; the exit code is 2 for an error that the user can fix."""
  return runtime.run(lambda: train(*parse(argv)))


if __name__ == '__main__':
  sys.exit(main())
