r"""Trains a model: python -m launch.train --gin_file=FILE --workdir=DIR .

--gin_file=gin_configs/runs/poems_cpu.gin --workdir=runs/poems
--gin_file=A.gin --gin_file=B.gin --gin.TRAIN_STEPS=100 --workdir=runs/b

Later gin files override earlier ones, and --gin.NAME=VALUE overrides all. The
same command again resumes where the work directory stands.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

from launch import flags, heap, preflight
from launch.stores import default_cache_dir, log


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


def find_data(run) -> tuple[str, dict[str, tuple[list[str], list[float]]]]:
  """The vocabulary directory, and the stores and rates of each task.

  What is missing or out of date is made in a child process, since that takes
  TensorFlow. The processes of other hosts find it made, or wait for it.

  Raises:
    SystemExit: if it can't be made.
  """
  from launch import stores
  from moe.data.store import find_stores

  data = run.data
  cache_dir = data.cache_dir or stores.default_cache_dir()
  wanted = [(data.train, ['train'])]
  wanted += [(task, ['validation']) for task in data.evaluation]
  vocabulary = data.vocabulary or None
  size = None if vocabulary else run.model.vocab_size
  directory = stores.vocabulary_directory(
    data.train, cache_dir, vocabulary, size
  )
  if not stores.is_prepared(directory, wanted, size):
    flag = f'--vocab_size={size}' if size else f'--vocabulary={vocabulary}'
    command = [sys.executable, '-m', 'launch.data', 'cache', flag]
    command += [f'--cache_dir={cache_dir}']
    command += [f'{task}/{split}' for task, (split,) in wanted]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
      sys.exit(done.returncode)  # the child has said why
  found = {
    (task, split): find_stores(directory, task, split)
    for task, (split,) in wanted
  }
  return directory, found


def write(path: str, content: str | bytes) -> None:
  """Writes a whole file or nothing."""
  content = content.encode() if isinstance(content, str) else content
  with open(path + '.tmp', 'wb') as f:
    f.write(content)
  os.replace(path + '.tmp', path)


def write_json(path: str, content) -> None:
  """Writes a whole JSON file or nothing."""
  write(path, json.dumps(content, ensure_ascii=False, indent=2))


def build(run, devices: Sequence | None = None):
  """The programs of a run on devices (default: all), by shapes alone."""
  from launch import config
  from moe.optim import optimizers
  from moe.train import program as program_lib

  functional, table, mesh = config.place(run, devices)
  shapes = program_lib.batch_shapes(
    run.data.batch_size, run.data.sequence_length
  )
  # Dense layers have no routing groups, which microbatches must not part.
  stack = run.model.stack(parent=None)
  block = stack.block(parent=None)
  is_sparse = stack.moe_every and not block.dense_twin
  group_size = block.moe(parent=None).group_size if is_sparse else 0
  objective = dataclasses.replace(
    run.objective(functional),
    rows_together=max(1, group_size // run.data.sequence_length),
  )
  return program_lib.make_program(
    objective,
    optimizers.build(
      run.optimizer(run.schedule), run.clip_norm, run.frozen, run.storage
    ),
    run.schedule,
    shapes,
    table,
    mesh,
    run.settings.seed,
    run.settings.num_microbatches,
  )


def flops_of(run, program) -> tuple[dict[str, int], float | None]:
  """Counts for the record, and the mesh's peak FLOP/s where it is known."""
  from moe.scale import topology

  counts = counts_of(run, program.abstract.params, program.logical_axes)
  device = program.mesh.devices.flat[0]
  peak = topology.peak_flops(device.device_kind)
  return counts, peak and peak * program.mesh.size


def counts_of(run, params, logical_axes) -> dict[str, int]:
  """Parameters and FLOPs per token, from the shapes of the parameters."""
  from moe.scale import cost

  stack = run.model.stack(parent=None)
  block = stack.block(parent=None)
  moe, attention = block.moe(parent=None), block.attention(parent=None)
  total, active = cost.parameter_counts(
    params, logical_axes, moe.make_router().mean_active(moe.num_experts)
  )
  tables = 0 if run.model.tie_embeddings else params['embedding']['table'].size
  flops = cost.flops_per_token(
    active,
    tables,
    attention.width(),
    stack.num_layers,
    run.data.sequence_length,
  )
  return {
    'params_total': total,
    'params_active': active,
    'flops_per_token_forward': flops,
    'flops_per_token_train': 3 * flops,
  }


def resumed_state(program, checkpointer):
  """(state, what was saved with it) of the newest sound step, else Nones."""
  if checkpointer.latest_step() is None:
    return None, None
  return checkpointer.restore(None, program.abstract)


def starting_state(run, program, vocabulary_sha256: str | None):
  """The state of a new run: of another one's parameters, or random."""
  from moe.train import restore

  preflight.check_origin(run, program, vocabulary_sha256)
  ts = program.init()
  if run.initial.upcycle:
    params, origin = upcycled(run, program, ts.params)
    ts = ts._replace(params=params)
  elif run.initial.checkpoint:
    params, state, origin = restore.load_initial(
      run.initial.checkpoint, ts.params, ts.state, run.initial.assignment
    )
    ts = ts._replace(params=params, state=state)
  else:
    return ts
  log(f'parameters of {run.initial.checkpoint}, step {origin["step"]}')
  return ts


def upcycled(run, program, params):
  """Parameters made from a dense run's, and what was recorded with that."""
  import jax

  from moe.parallel import shardings
  from moe.train import restore, upcycle

  whole = shardings.replicated(program.mesh)
  dense, meta = restore.load_params(run.initial.checkpoint, sharding=whole)
  key = jax.random.key(run.settings.seed)
  made = jax.jit(
    lambda dense, sparse: upcycle.upcycle(
      dense, sparse, run.initial.upcycle, key
    ),
    out_shardings=jax.tree.map(lambda a: a.sharding, program.abstract.params),
  )
  return made(dense['params'], params), meta


def open_data(run, directory: str, found, workdir: str):
  """The reader of training batches, and `Evaluation`s by task.

  Raises:
    ValueError: if data can't be made or does not fit the model.
  """
  import jax

  from moe.data.reader import Reader, eval_batches
  from moe.data.store import VOCABULARY, Store
  from moe.train.trainer import Evaluation

  data = run.data
  path = os.path.join(directory, VOCABULARY)
  preflight.check_vocabulary(path, workdir, run.model.vocab_size)
  if jax.process_index() == 0:
    write(
      os.path.join(workdir, 'vocabulary.model'), pathlib.Path(path).read_bytes()
    )
  reader = Reader(
    *found[data.train, 'train'],
    data.sequence_length,
    data.batch_size,
    run.settings.seed,
  )

  def evaluation(name):
    dirs, _ = found[name, 'validation']

    def batches():
      for d in dirs:
        yield from eval_batches(d, data.sequence_length, data.batch_size)

    return Evaluation(
      batches, sum(Store(d).manifest['counts']['chars'] for d in dirs)
    )

  return reader, {name: evaluation(name) for name in data.evaluation}


def train(args: argparse.Namespace, overrides: list[str]) -> int:
  """Runs the command; the exit code is 0, or 75 after SIGTERM."""
  begin = time.monotonic()
  from launch import config
  from moe.data import store
  from moe.train import checkpoint, progress, trainer
  from moe.train import program as program_lib

  # ---- All that can be wrong is found before anything long is done -----------
  run = config.load(args.gin_file, overrides)
  preflight.open_workdir(args.workdir)
  configure_jax()
  steps_dir = os.path.join(os.path.abspath(args.workdir), 'checkpoints')
  preflight.check_names(run, args.workdir, steps_dir)
  program = build(run)
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
  checkpointer = checkpoint.Checkpointer(
    steps_dir, run.settings.keep_last, run.settings.keep_best
  )
  ts, saved = resumed_state(program, checkpointer)
  directory, found = find_data(run)
  reader, evaluations = open_data(run, directory, found, args.workdir)

  # ---- State -----------------------------------------------------------------
  settings = run.settings
  meta = {
    'manifest_hash': reader.manifest_hash,
    'vocabulary_sha256': reader.vocab_sha256,
    **preflight.run_identity(run),
    'mesh': dict(program.mesh.shape),
    'config': config.config_text(),
  }
  if ts is None:
    ts = starting_state(run, program, reader.vocab_sha256)
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

  from launch import config

  if jax.process_index() == 0:
    write(os.path.join(workdir, 'config.gin'), config.config_text())
    operative = os.path.join(workdir, 'operative_config.gin')
    write(operative, config.operative_text())
    write(os.path.join(workdir, 'model.txt'), description)


def finish(run, workdir: str, counts: dict[str, int], found) -> None:
  """Writes baselines, samples, the facts of the run and the report."""
  import jax

  from launch import report, results
  from moe.modalities.vocabulary import Vocabulary

  if jax.process_index() != 0:
    return  # Nothing below may wait for other processes.
  write_json(os.path.join(workdir, 'run.json'), counts)
  if run.data.evaluation:
    bits = results.baselines(
      found[run.data.train, 'train'][0],
      found[run.data.evaluation[0], 'validation'][0],
      Vocabulary(os.path.join(workdir, 'vocabulary.model')),
    )
    write_json(os.path.join(workdir, 'baselines.json'), bits)
    for name, value in bits.items():
      log(f'{name} of the training split: {value:.4f} bits/char held out')
  write_json(os.path.join(workdir, 'samples.json'), samples_of(run, workdir))
  log(f'report: {report.write_report(workdir)}')


def samples_of(run, workdir: str) -> list[dict[str, str]]:
  """What the trained run writes after its prompts; none where it can't."""
  import jax

  from launch import config, results

  if not run.prompts:
    return []
  if jax.process_count() > 1:
    log('no samples: a run of several processes is sampled by launch.sample.')
    return []
  try:
    return results.samples(config.load_run(workdir), run.prompts)
  except ValueError as error:  # Such as a layer that can't go token by token.
    log(f'no samples: {error}')
    return []


def configure_jax() -> None:
  """Joins other processes; keeps memory, and compiled programs if none does."""
  import jax

  from moe.parallel import multihost

  multihost.initialize()
  if jax.default_backend() == 'cpu':
    heap.keep_freed_memory()
  if jax.config.jax_compilation_cache_dir is None:
    compiled = os.path.join(default_cache_dir(), 'compiled')
    jax.config.update('jax_compilation_cache_dir', compiled)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)


def main(argv: Sequence[str] | None = None) -> int:
  """Trains; 2 for what the user can mend, with one sentence on how."""
  args, overrides = parse(argv)
  try:
    return train(args, overrides)
  except (ValueError, OSError) as error:
    log(f'error: {" ".join(str(error).split())}')
    return 2


if __name__ == '__main__':
  sys.exit(main())
