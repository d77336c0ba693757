r"""Trains a model: python -m launch.train --gin_file=FILE --workdir=DIR .

--gin_file=gin_configs/runs/poems_cpu.gin --workdir=runs/poems
--gin_file=A.gin --gin_file=B.gin --gin.TRAIN_STEPS=100 --workdir=runs/b

Later gin files override earlier ones, and --gin.NAME=VALUE overrides all. The
same command again resumes where the work directory stands.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

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
  add(
    '--gin_file',
    action='append',
    default=[],
    metavar='FILE',
    help='gin file, here or in gin_configs; may be given several times',
  )
  add(
    '--gin.NAME=VALUE',
    dest='override',
    help='binds a macro or a parameter; text in quotes: --gin.TASK="\'ci\'"',
  )
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
  argv = list(sys.argv[1:] if argv is None else argv)
  overrides = [a.removeprefix('--gin.') for a in argv if a.startswith('--gin.')]
  return parser.parse_args(
    [a for a in argv if not a.startswith('--gin.')]
  ), overrides


def open_workdir(workdir: str) -> None:
  """Makes the directory, and proves that it can be written.

  Raises:
    ValueError: if it can't.
  """
  probe = os.path.join(workdir, '.probe')
  try:
    os.makedirs(workdir, exist_ok=True)
    with open(probe, 'w') as f:
      f.write('x')
    os.remove(probe)
  except OSError as error:
    raise ValueError(
      f'--workdir={workdir} must be a directory that can be written'
      f' ({error.strerror}): choose another one.'
    ) from error


def find_data(run) -> tuple[str, dict[str, tuple[list[str], list[float]]]]:
  """The vocabulary directory, and the stores and rates of each task.

  What is missing is made in a child process, since that takes TensorFlow. The
  processes of other hosts find it made, or wait for it.

  Raises:
    SystemExit: if it can't be made.
  """
  from launch import stores
  from moe.data.store import VOCABULARY, find_stores

  data = run.data
  cache_dir = data.cache_dir or stores.default_cache_dir()
  splits = {data.train: ['train']}
  for name in data.evaluation:
    splits.setdefault(name, []).append('validation')
  vocabulary, found, directory = data.vocabulary or None, {}, None
  for task, wanted in splits.items():
    size = None if vocabulary else run.model.vocab_size
    directory = stores.vocabulary_directory(task, cache_dir, vocabulary, size)
    if not stores.is_prepared(directory, task, wanted):
      flag = f'--vocab_size={size}' if size else f'--vocabulary={vocabulary}'
      command = [sys.executable, '-m', 'launch.data', 'cache', task]
      command += [f'--cache_dir={cache_dir}', flag, '--split', *wanted]
      done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
      if done.returncode:
        sys.exit(done.returncode)  # the child has said why
    vocabulary = os.path.join(directory, VOCABULARY)
    for split in wanted:
      found[task, split] = find_stores(directory, task, split)
  return directory, found


def check_vocabulary(path: str, workdir: str, vocab_size: int) -> None:
  """Copies the vocabulary into the work directory, once.

  Raises:
    ValueError: if the model's table is too small for it, or the work directory
      has another one.
  """
  from moe.data.store import file_sha256
  from moe.modalities.vocabulary import Vocabulary

  vocabulary = Vocabulary(path)
  if vocabulary.size > vocab_size:
    raise ValueError(
      f'VOCAB_SIZE={vocab_size} must be at least the {vocabulary.size} pieces'
      f' of {path}: raise it, or choose another VOCABULARY.'
    )
  copy = os.path.join(workdir, 'vocabulary.model')
  if os.path.exists(copy) and file_sha256(copy) != vocabulary.sha256:
    raise ValueError(
      f'{copy} must be the vocabulary of the data, {path}, but differs: choose'
      ' another --workdir, or the VOCABULARY that this run began with.'
    )
  write(copy, open(path, 'rb').read())


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
  return program_lib.make_program(
    run.objective(functional),
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


def starting_state(run, program, checkpointer, meta: dict[str, Any]):
  """The state to train from: of this run, of another, or new."""
  from moe.train import restore

  expect = {k: meta[k] for k in ('manifest_hash', 'vocabulary_sha256', 'seed')}
  if checkpointer.latest_step() is not None:
    ts, _ = checkpointer.restore(None, program.abstract, expect)
    return ts
  ts = program.init()
  if run.initial.upcycle:
    params, origin = upcycled(run, program, ts.params)
  elif run.initial.checkpoint:
    # Only parameters are taken; paths in the map need no 'params/' in front.
    prefixed = [
      (f'params/{ours}', theirs and f'params/{theirs}')
      for ours, theirs in run.initial.assignment
    ]
    loaded, origin = restore.load_params(
      run.initial.checkpoint,
      target={'params': ts.params},
      assignment=prefixed,
    )
    params = loaded['params']
  else:
    return ts
  log(f'parameters of {run.initial.checkpoint}, step {origin["step"]}')
  return ts._replace(params=params)


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
  from moe.data.reader import Reader, eval_batches
  from moe.data.store import VOCABULARY, Store
  from moe.train.trainer import Evaluation

  data = run.data
  path = os.path.join(directory, VOCABULARY)
  check_vocabulary(path, workdir, run.model.vocab_size)
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


def check_disk(program, steps_dir: str) -> None:
  """Raises ValueError unless two checkpoints can be written."""
  import jax

  from moe.train import checkpoint

  leaves = jax.tree.leaves(program.abstract)
  num_bytes = sum(a.size * a.dtype.itemsize for a in leaves)
  checkpoint.check_writable(steps_dir, 2 * num_bytes)


def warn_of_router(run) -> None:
  """Says so where the router lets a token's experts depend on later tokens."""
  moe = run.model.stack(parent=None).block(parent=None).moe(parent=None)
  if hasattr(moe, 'make_router') and not moe.make_router().is_causal:
    print(
      f'warning: {type(moe.make_router()).__name__} chooses by all tokens of a'
      ' group: bits per character of this decoder are not a likelihood, and it'
      ' writes otherwise than it was trained.'
    )


def train(args: argparse.Namespace, overrides: list[str]) -> int:
  """Runs the command; the exit code is 0, or 75 after SIGTERM."""
  begin = time.monotonic()
  from launch import config

  # ---- All that can be wrong is found before anything long is done -----------
  run = config.load(args.gin_file, overrides)
  open_workdir(args.workdir)
  configure_jax()
  program = build(run)
  warn_of_router(run)
  counts, peak = flops_of(run, program)
  description = describe(program, counts)
  if args.dry_run:
    print(description, end='')
    return 0
  steps_dir = os.path.join(os.path.abspath(args.workdir), 'checkpoints')
  check_disk(program, steps_dir)
  directory, found = find_data(run)
  reader, evaluations = open_data(run, directory, found, args.workdir)

  # ---- State -----------------------------------------------------------------
  from moe.train import checkpoint, progress, trainer
  from moe.train import program as program_lib

  settings = run.settings
  meta = {
    'manifest_hash': reader.manifest_hash,
    'vocabulary_sha256': reader.vocab_sha256,
    'seed': settings.seed,
    'mesh': dict(program.mesh.shape),
    'config': config.config_text(),
  }
  checkpointer = checkpoint.Checkpointer(
    steps_dir, settings.keep_last, settings.keep_best
  )
  ts = starting_state(run, program, checkpointer, meta)
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
  tokens = data.batch_size * data.sequence_length
  shown = progress.Progress(
    args.workdir,
    settings.train_steps,
    first,
    tokens,
    peak and tokens * counts['flops_per_token_train'] / peak,
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

  from launch import config, report, results

  if jax.process_index() != 0:
    return
  write_json(os.path.join(workdir, 'run.json'), counts)
  trained = config.load_run(workdir)
  if run.data.evaluation:
    bits = results.baselines(
      found[run.data.train, 'train'][0],
      found[run.data.evaluation[0], 'validation'][0],
      trained.vocabulary,
    )
    write_json(os.path.join(workdir, 'baselines.json'), bits)
    for name, value in bits.items():
      log(f'{name} of the training split: {value:.4f} bits/char held out')
  written = results.samples(trained, run.prompts)
  write_json(os.path.join(workdir, 'samples.json'), written)
  log(f'report: {report.write_report(workdir)}')


def configure_jax() -> None:
  """Joins other processes; keeps compiled programs unless the user does."""
  import jax

  from moe.parallel import multihost

  multihost.initialize()
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
