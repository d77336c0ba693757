"""Builds the parts of a run on devices: program, reader, initial state."""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from moe import atomic_files
from moe.checkpoint import listing, restore, upcycle
from moe.checkpoint.save import Checkpointer
from moe.data.cache_dir import default_cache_dir
from moe.data.reader import Reader, eval_batches
from moe.data.store import VOCABULARY, Store, find_stores
from moe.data.transforms import Transform, shape_of
from moe.modalities import ids
from moe.models import functional as functional_lib
from moe.models.anatomy import anatomy
from moe.models.functional import Functional
from moe.parallel import rules, shardings
from moe.parallel.mesh import make_mesh
from moe.runs import preflight
from moe.runs.run import IMAGE_TOKENIZER, Run, check_rates, optimizer_of
from moe.train import program as program_lib
from moe.train.evaluation import HeldOut
from moe.train.program import Program
from moe.train.state import TrainState
from moe.types import PyTree, TokenBatch

_logger = logging.getLogger(__name__)

# (task, split) -> (token stores, their mixing rates).
FoundStores = dict[tuple[str, str], tuple[list[Store], list[float]]]


def place_model(
  run: Run, devices: Sequence[jax.Device] | None = None
) -> tuple[Functional, rules.Table, Mesh]:
  """Returns (functional, rule table, mesh) of a run.

  Args:
    run: the run.
    devices: devices of the mesh; None takes all.
  """
  table = rules.table(run.rules)
  mesh = make_mesh(run.mesh, devices or jax.devices())
  layout = rules.layout(table, mesh)
  functional = functional_lib.make_functional(
    run.model, rules.activation_rules(table), layout
  )
  return functional, table, mesh


def build(run: Run, devices: Sequence[jax.Device] | None = None) -> Program:
  """Builds the program of a run from shapes; it allocates no array.

  Args:
    run: the run.
    devices: devices of the mesh; None takes all.

  Raises:
    ValueError: if the run cannot be trained, see `check_rates`.
  """
  check_rates(run)
  functional, table, mesh = place_model(run, devices)
  # A microbatch must contain whole routing groups. Dense models have no groups.
  experts = anatomy(run.model).experts
  group_size = experts.group_size if experts else 0
  objective = dataclasses.replace(
    run.objective(functional, run.data.shape),
    rows_together=max(1, group_size // run.data.sequence_length),
  )
  return program_lib.make_program(
    objective,
    optimizer_of(run),
    run.schedule,
    table,
    mesh,
    run.settings.seed,
    run.settings.num_microbatches,
    run.settings.spike_deviations,
  )


def resumed_state(
  program: Program, checkpointer: Checkpointer
) -> tuple[TrainState | None, dict[str, Any] | None]:
  """Reads (state, metadata) of the newest sound step.

  Without any step, the result is (None, None).
  """
  if not listing.shared_steps(checkpointer.directory):
    return None, None
  # `norms` is for the rule for spikes, which may be switched on or off in the
  # middle of a run.
  return checkpointer.restore(None, program.abstract, optional='norms/.*')


def starting_state(
  run: Run, program: Program, hashes: dict[str, str | None]
) -> TrainState:
  """Makes the state of a new run, from random values or from another run.

  Args:
    run: the run.
    program: the program of the run.
    hashes: hashes of the run's data, see `preflight.check_origin`.
  """
  preflight.check_origin(run, program, hashes)
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
  _logger.info(
    f'initial parameters: {run.initial.checkpoint}, step {origin["step"]}'
  )
  return ts


def upcycled(
  run: Run, program: Program, params: PyTree
) -> tuple[PyTree, dict[str, Any]]:
  """Makes sparse parameters from the parameters of a dense run.

  Returns:
    (parameters, metadata of the dense run).
  """
  placement = upcycle.dense_placement(
    program.abstract.params, shardings.replicated(program.mesh)
  )
  dense, meta = restore.load_params(run.initial.checkpoint, placement=placement)
  key = jax.random.key(run.settings.seed)
  made = jax.jit(
    lambda dense, sparse: upcycle.upcycle(
      dense, sparse, run.initial.upcycle, key
    ),
    out_shardings=jax.tree.map(lambda a: a.sharding, program.abstract.params),
  )
  return made(dense['params'], params), meta


def find_data(
  run: Run, prepare_stores: Callable[..., str]
) -> tuple[str, FoundStores]:
  """Finds the vocabulary directory and the token stores of each task and split.

  The files of the stores stay open. So if another process replaces a store, the
  run still reads the old one.

  Args:
    run: the run.
    prepare_stores: makes missing token stores, with the arguments and the
      result of `launch.token_stores.prepare`.
  """
  data = run.data
  wanted = [(data.train, ['train'])]
  wanted += [(task, ['validation']) for task in data.evaluation]
  directory = prepare_stores(
    wanted,
    data.cache_dir or default_cache_dir(),
    data.vocabulary or None,
    ids.text_room(run.model.vocab_size, dict(data.ranges)),
    task_modules=data.task_modules,
    **({'ranges': dict(data.ranges)} if data.ranges else {}),
  )
  hold = functools.cache(lambda path: Store(path).hold())
  found = {}
  for task, (split,) in wanted:
    paths, rates = find_stores(directory, task, split)
    found[task, split] = [hold(path) for path in paths], rates
  return directory, found


def held_out_hashes(run: Run, found: FoundStores) -> dict[str, str]:
  """Task -> hash of its held-out documents, in the order of the tasks."""
  hashes = {}
  for task in run.data.evaluation:
    stores, _ = found[task, 'validation']
    content = [store.manifest['content_sha256'] for store in stores]
    hashes[task] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
  return hashes


def open_data(
  run: Run, program: Program, directory: str, found: FoundStores, workdir: str
) -> tuple[Reader, dict[str, HeldOut]]:
  """Returns (reader of training batches, held-out data by task).

  Each process reads only the rows of its own devices. The vocabulary and the
  image tokenizer are copied into the work directory.

  Args:
    run: the run.
    program: the program of the run.
    directory: the vocabulary directory, from `find_data`.
    found: the token stores, from `find_data`.
    workdir: directory of the run.

  Raises:
    ValueError: if data cannot be read or does not fit the model.
  """
  data = run.data
  path = os.path.join(directory, VOCABULARY)
  preflight.check_vocabulary(path, workdir, run.model.vocab_size)
  if jax.process_index() == 0:
    atomic_files.write_file(
      os.path.join(workdir, VOCABULARY), pathlib.Path(path).read_bytes()
    )
  rows = program.own_rows(data.batch_size)
  of_task = dict(data.transforms)

  def transform(store: Store) -> Transform | None:
    task = os.path.dirname(store.directory)
    return of_task.get(os.path.relpath(task, directory))

  fields = program.objective.fields()
  extras = {
    name: jax.ShapeDtypeStruct(field.shape[2:], field.dtype)
    for name, field in (
      fields.extras.items() if isinstance(fields, TokenBatch) else ()
    )
  }
  stores, rates = found[data.train, 'train']
  reader = Reader(
    stores,
    rates,
    data.sequence_length,
    data.batch_size,
    run.settings.seed,
    data.max_bad_fraction,
    rows=rows,
    transforms=[transform(store) for store in stores],
    extras=extras,
  )
  preflight.check_ids(reader.ids, run.model.vocab_size)
  preflight.check_ranges(reader.ids, run.model.ids)
  preflight.check_tokenizer(reader.ids, data.image_tokenizer)
  for name in data.evaluation:
    preflight.check_evaluation(reader.ids, name, found[name, 'validation'][0])
  if data.image_tokenizer and jax.process_index() == 0:
    atomic_files.write_file(
      os.path.join(workdir, IMAGE_TOKENIZER),
      pathlib.Path(data.image_tokenizer).read_bytes(),
    )

  def evaluation(name: str) -> HeldOut:
    stores, _ = found[name, 'validation']

    def batches() -> Iterator[TokenBatch]:
      for store in stores:
        yield from eval_batches(
          store,
          data.sequence_length,
          data.batch_size,
          rows,
          transform(store),
          extras,
        )

    counts = [shape_of(store, transform(store)).counts for store in stores]
    chars = sum(count['chars'] for count in counts)
    return HeldOut(batches, program.objective.score, {'chars': chars})

  return reader, {name: evaluation(name) for name in data.evaluation}
