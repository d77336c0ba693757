"""An objective that denoises pictures, and runs that train without tokens."""

import io
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe import axes
from moe.checkpoint.save import Checkpointer
from moe.objectives.objective import Measure, Objective
from moe.optim import optimizers
from moe.parallel import processes, rules
from moe.parallel.mesh import MeshShape, make_mesh
from moe.train import trainer
from moe.train.evaluation import HeldOut
from moe.train.program import make_program
from moe.train.progress import Progress
from moe.types import Field

B, Y, X, WIDTH = 16, 4, 4, 8
STEPS = 8
SETTINGS = trainer.Settings(
  STEPS, eval_period=3, save_period=3, num_microbatches=2, keep_last=9
)
ONE, EIGHT = MeshShape(), MeshShape(data=2, fsdp=2, expert=2)


def _init(key, batch_shapes):
  channels = batch_shapes['pictures'].shape[-1]
  down, up = jax.random.split(key)
  params = {
    'down': jax.random.normal(down, (channels, WIDTH)),
    'up': jax.random.normal(up, (WIDTH, channels)) / 10,
  }
  logical = {'down': (None, axes.EMBED), 'up': (axes.EMBED, None)}
  return params, {'seen': jnp.zeros(())}, logical


def _fields():
  return {
    'pictures': Field(
      (B, Y, X, 3), jnp.float32, (axes.BATCH, None, None, None)
    ),
    'weights': Field((B,), jnp.float32, (axes.BATCH,)),
  }


def _loss(params, state, batch, key, train):
  """Returns the squared error of denoised pictures, state and metrics."""
  pictures, weights_B = batch['pictures'], batch['weights']
  noisy = pictures
  if key is not None:
    noisy += 0.1 * jax.random.normal(key, pictures.shape)
  made = jnp.tanh(noisy @ params['down']) @ params['up']
  error_B = jnp.square(made - pictures).sum(axis=(1, 2, 3))
  if train:
    state = {'seen': state['seen'] + weights_B.sum()}
  sums = {'squared_error': jnp.sum(error_B * weights_B)}
  return sums, state, {'colour': (made.sum(), jnp.float32(made.size))}


def _weights(batch):
  return {'squared_error': batch['weights'].sum() * (Y * X * 3)}


def _psnr(sums, facts):
  total, weight = sums['squared_error']
  return 20 * math.log10(facts['peak']) - 10 * math.log10(total / weight)


OBJECTIVE = Objective(
  _init,
  _fields,
  _loss,
  _weights,
  {'squared_error': 1.0},
  Measure('psnr', 'dB', _psnr, is_higher_better=True),
  unit='pictures',
  count=lambda batch: int(np.count_nonzero(batch['weights'])),
)


def make_batch(seed):
  """Makes a batch of smooth pictures; its last picture is padding."""
  rng = np.random.RandomState(seed)
  colours = rng.uniform(-1, 1, (B, 1, 1, 3))
  slopes = np.linspace(-0.5, 0.5, X)[:, None] * rng.uniform(-1, 1, (B, 1, 1, 3))
  pictures = np.broadcast_to(colours + slopes, (B, Y, X, 3))
  weights = np.ones(B, np.float32)
  weights[-1] = 0
  return {'pictures': pictures.astype(np.float32), 'weights': weights}


def own_batch(program, seed):
  """Makes the rows of a batch that belong to the devices of this process."""
  rows = program.own_rows(B)
  return {name: array[rows] for name, array in make_batch(seed).items()}


class Reader:
  """A reader of pictures. It calls `events[step]` before it reads a step."""

  facts = {'peak': 1.0}

  def __init__(self, program, events=None):
    self.quarantine = []
    self.bytes_read = 0
    self._program = program
    self._events = events or {}

  def batch(self, step):
    self._events.get(step, lambda: None)()
    batch = own_batch(self._program, step)
    self.bytes_read += sum(array.nbytes for array in batch.values())
    return batch


def make(shape, num_devices):
  """Makes the program of a run on a mesh of this shape."""
  return make_program(
    OBJECTIVE,
    optimizers.build(optimizers.adamw(optax.constant_schedule(0.1))),
    lambda step: 0.1,
    rules.table('standard'),
    make_mesh(shape, jax.devices()[:num_devices]),
    seed=0,
    num_microbatches=SETTINGS.num_microbatches,
  )


def held_out(program):
  """Makes the evaluation on two held-out batches."""
  batches = lambda: (own_batch(program, seed) for seed in (100, 101))
  return HeldOut(batches, OBJECTIVE.score, {'peak': 1.0})


def train(program, workdir, events=None, evaluation=None, stream=None):
  """Trains a run; a second call with the same directory resumes the run."""
  evaluation = evaluation or held_out(program)
  reader = Reader(program, events)
  score = evaluation.score
  checkpointer = Checkpointer(
    workdir / 'checkpoints', 9, 1, score.name, score.is_higher_better
  )
  ts = program.init()
  if checkpointer.latest_step() is not None:
    ts, _ = checkpointer.restore(None, program.abstract)
  stream = stream or io.StringIO()
  progress = Progress(workdir, OBJECTIVE, STEPS, int(ts.step), stream=stream)
  try:
    return trainer.train(
      SETTINGS,
      program,
      reader,
      {'pictures': evaluation},
      checkpointer,
      progress,
      {},
      ts,
    )
  finally:
    checkpointer.close()
    progress.close()
    if jax.process_count() > 1:
      print('bytes read:', reader.bytes_read)


if __name__ == '__main__':
  import os
  import pathlib
  import signal

  processes.initialize()
  # The arguments are the directory, the number of devices, and the step at
  # which the process is killed.
  directory, number, last = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])
  kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
  program = make(EIGHT if number == 8 else ONE, number)
  sys.exit(train(program, directory, {last: kill}, stream=sys.stderr)[1])
