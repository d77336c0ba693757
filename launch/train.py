r"""Trains a model: python -m launch.train --gin_file=FILE --workdir=DIR .

--gin_file=gin_configs/runs/poems_cpu.gin --workdir=runs/poems
--gin_file=A.gin --gin_file=B.gin --gin.TRAIN_STEPS=100 --workdir=runs/b

Later gin files override earlier ones, and --gin.NAME=VALUE overrides all. The
same command again resumes where the work directory stands.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence

from launch import runtime
from launch.configs import flags
from launch.runtime import log
from moe.train import record_log


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """Command-line flags, and what --gin. flags bind."""
  parser = argparse.ArgumentParser(
    prog='python -m launch.train',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  flags.add_gin_flags(parser, default=[])
  add('--workdir', required=True, metavar='DIR', help='what the run writes')
  add(
    '--dry_run',
    action='store_true',
    help='check everything by shapes, print the model, and stop',
  )
  add(
    '--compiled',
    metavar='FILE',
    help='the step, compiled ahead for these devices by launch.plan',
  )
  return flags.parse(parser, argv)


def train(args: argparse.Namespace, overrides: list[str]) -> int:
  """Runs the command; the exit code is 0, or 75 after SIGTERM."""
  begin = time.monotonic()
  from launch import token_stores
  from launch.configs import configuration
  from moe.checkpoint import save
  from moe.data import store
  from moe.runs import build, preflight
  from moe.runs.counts import flops_of
  from moe.train import program as program_lib
  from moe.train import progress, trainer

  # ---- All that can be wrong is found before anything long is done -----------
  run = configuration.load(args.gin_file, overrides)
  preflight.open_workdir(args.workdir)
  runtime.set_up_jax()
  steps_dir = os.path.join(os.path.abspath(args.workdir), 'checkpoints')
  differences = configuration.differences(
    os.path.join(args.workdir, 'config.gin')
  )
  preflight.check_names(run, args.workdir, steps_dir, differences)
  program = build.build(run)
  preflight.warn_of_router(run)
  counts, peak = flops_of(run, program)
  description = describe(program, counts)
  if args.dry_run:
    print(description, end='')
    return 0
  if run.data.vocabulary:  # Else it is known when there is data.
    sha256 = store.file_sha256(run.data.vocabulary)
    preflight.check_origin(run, program, sha256)
  preflight.check_disk(program, steps_dir)
  checkpointer = save.Checkpointer(
    steps_dir, run.settings.keep_last, run.settings.keep_best
  )
  ts, saved = build.resumed_state(program, checkpointer)
  directory, found = token_stores.find_data(run)
  reader, evaluations = build.open_data(run, directory, found, args.workdir)

  # ---- State -----------------------------------------------------------------
  settings = run.settings
  meta = {
    'manifest_hash': reader.manifest_hash,
    'vocabulary_sha256': reader.vocab_sha256,
    **preflight.run_identity(run),
    'mesh': dict(program.mesh.shape),
    'config': configuration.config_text(),
  }
  if ts is None:
    ts = build.starting_state(run, program, reader.vocab_sha256)
  else:
    preflight.check_saved(saved, meta, args.workdir)
  first = int(ts.step)
  write_config(args.workdir, description)

  # ---- Training --------------------------------------------------------------
  compiling = time.monotonic()
  data = run.data
  shapes = program_lib.batch_shapes(data.batch_size, data.sequence_length)
  if args.compiled:
    from moe.scale import compile as compile_lib

    step = compile_lib.load(program, shapes, args.compiled)
    program.train_step.use(step)
  else:
    program.train_step.compile(program.abstract, shapes)
  now = time.monotonic()
  log(
    f'{counts["params_total"]:,} parameters, {counts["params_active"]:,}'
    f' active, on {program.mesh.size} x'
    f' {program.mesh.devices.flat[0].device_kind};'
    f' compiled in {now - compiling:.1f} s, ready after {now - begin:.1f} s;'
    f' step {first:,} of {settings.train_steps:,}'
  )
  shown = progress.Progress(
    args.workdir,
    settings.train_steps,
    first,
    peak and counts['flops_per_token_train'] / peak,
    settings.drop_warning,
  )
  with contextlib.closing(shown), contextlib.closing(checkpointer):
    ts, code = trainer.train(
      settings, program, reader, evaluations, checkpointer, shown, meta, ts
    )
  if code == 0:
    finish(run, args.workdir, counts, found)
  return code


def describe(program, counts: dict[str, int]) -> str:
  """The model dump."""
  from moe.train import program as program_lib

  return program_lib.describe(program) + (
    f'active parameters per token {counts["params_active"]:,}\n'
    f'model FLOPs per token, forward {counts["flops_per_token_forward"]:,}\n'
  )


def write_config(workdir: str, description: str) -> None:
  """What this run is, for people and for resuming it."""
  import jax

  from launch.configs import configuration

  if jax.process_index() == 0:
    record_log.write_file(
      os.path.join(workdir, 'config.gin'), configuration.config_text()
    )
    operative = os.path.join(workdir, 'operative_config.gin')
    record_log.write_file(operative, configuration.operative_text())
    record_log.write_file(os.path.join(workdir, 'model.txt'), description)


def finish(run, workdir: str, counts: dict[str, int], found) -> None:
  """Writes baselines, samples, the facts of the run and the report."""
  import jax

  from moe.modalities.vocabulary import Vocabulary
  from moe.report import run_page
  from moe.runs import results

  if jax.process_index() != 0:
    return  # Nothing below may wait for other processes.
  record_log.write_json(os.path.join(workdir, 'run.json'), counts)
  if run.data.evaluation:
    bits = results.baselines(
      found[run.data.train, 'train'][0],
      found[run.data.evaluation[0], 'validation'][0],
      Vocabulary(os.path.join(workdir, 'vocabulary.model')),
    )
    record_log.write_json(os.path.join(workdir, 'baselines.json'), bits)
    for name, value in bits.items():
      log(f'{name} of the training split: {value:.4f} bits/char held out')
  record_log.write_json(
    os.path.join(workdir, 'samples.json'), samples_of(run, workdir)
  )
  log(f'report: {run_page.write_report(workdir)}')


def samples_of(run, workdir: str) -> list[dict[str, str]]:
  """What the trained run writes after its prompts; none where it can't."""
  import jax

  from launch.configs import configuration
  from moe.runs import results

  if not run.prompts:
    return []
  if jax.process_count() > 1:
    log('no samples: a run of several processes is sampled by launch.sample.')
    return []
  try:
    return results.samples(configuration.load_run(workdir), run.prompts)
  except ValueError as error:  # Such as a layer that can't go token by token.
    log(f'no samples: {error}')
    return []


def main(argv: Sequence[str] | None = None) -> int:
  """Trains; 2 for what the user can mend, with one sentence on how."""
  args, overrides = parse(argv)
  return runtime.run(lambda: train(args, overrides))


if __name__ == '__main__':
  sys.exit(main())
