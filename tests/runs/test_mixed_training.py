"""A run trained on a mixture of pictures, texts and residues.

The tasks are pictures as a block before their captions, captions before
pictures code by code, and residues as a partly masked block.
"""

import dataclasses
import functools
import json
import os
import signal

import jax
import numpy as np
import optax
import pytest

from moe.checkpoint import listing
from moe.data import transforms
from moe.data.reader import Reader
from moe.layers.moe_layer import MoE
from moe.modalities.text import train_vocabulary
from moe.models.decoder import Decoder
from moe.models.stack import Stack
from moe.objectives.language import language_model
from moe.optim import optimizers
from moe.parallel.mesh import MeshShape
from moe.routing import gates
from moe.runs import preflight, training
from moe.runs.run import Data, Run
from moe.train import trainer
from tests.data import mixed
from tests.models import factories

LENGTH, ROWS, STEPS = 20, 16, 8
MASK = transforms.MaskBlocks(0.25)
RANGES = (('command', 1), ('image', 8), ('residue', 5))
# Each of three modalities has two experts, and all share two.
ROUTER = functools.partial(gates.ModalityGrouped, reserved=(2, 2, 2))
MODEL = Decoder(
  functools.partial(
    Stack,
    block=functools.partial(
      factories.make_block(),
      moe=functools.partial(
        MoE, num_experts=8, expert_d_ff=8, group_size=LENGTH, router=ROUTER
      ),
    ),
    num_layers=1,
  ),
  vocab_size=mixed.SPACE.size,
  d_model=8,
)


@pytest.fixture(scope='module')
def stores(tmp_path_factory):
  """The vocabulary directory of the mixture and its three tasks."""
  directory = tmp_path_factory.mktemp('mixed')
  train_vocabulary(['春眠不覺曉'], 290, directory / 'vocabulary.model', 'char')
  for seed, split in enumerate(('train', 'validation')):
    for kind in mixed.KINDS:
      mixed.write(directory / kind / split, kind, 40, seed)
  os.makedirs(directory / 'all')
  tasks = list(mixed.KINDS)
  (directory / 'all' / 'mixture.json').write_text(
    json.dumps(
      {
        'rates': dict.fromkeys(tasks, 1.0),
        'splits': {'train': tasks, 'validation': tasks},
      }
    )
  )
  return directory


def run_of(mesh):
  return Run(
    model=MODEL,
    mesh=mesh,
    objective=language_model,
    optimizer=optimizers.adamw,
    schedule=optax.constant_schedule(0.03),
    data=Data(
      'all',
      ['all'],
      LENGTH,
      ROWS,
      ranges=RANGES,
      transforms=(('folded', MASK),),
    ),
    settings=trainer.Settings(STEPS, save_period=3, keep_last=9),
  )


def train(run, workdir, stores, job=None):
  """Trains a run: (exit code, loss of each step, job)."""
  os.makedirs(workdir, exist_ok=True)
  job = job or training.prepare(run, str(workdir), ())
  code = training.train(
    job,
    {'config.gin': ''},
    lambda *args, **kwargs: str(stores),
    lambda workdir: workdir,
  )
  log = [json.loads(line) for line in open(workdir / 'log.jsonl')]
  return code, [record['loss'] for record in log], job


@pytest.fixture(scope='module')
def unbroken(stores, tmp_path_factory):
  """(work directory, losses, job) of a run on eight devices."""
  workdir = tmp_path_factory.mktemp('unbroken')
  code, losses, job = train(
    run_of(MeshShape(data=2, expert=4)), workdir, stores
  )
  assert code == 0
  return workdir, losses, job


@pytest.mark.slow
def test_eight_devices_train_like_one(stores, unbroken, tmp_path, monkeypatch):
  one = jax.devices()[:1]
  monkeypatch.setattr('jax.devices', lambda *args: one)
  _, losses, _ = train(run_of(MeshShape()), tmp_path, stores)
  np.testing.assert_allclose(losses, unbroken[1], atol=1e-5)
  assert losses[-1] < losses[0] - 0.5


@pytest.mark.slow
def test_a_killed_and_resumed_run_has_the_losses_of_an_unbroken_one(
  stores, unbroken, tmp_path, monkeypatch
):
  _, losses, job = unbroken
  job, read, killed = (
    dataclasses.replace(job, workdir=str(tmp_path)),
    Reader.batch,
    [],
  )

  def kill(self, step, *args):
    if step == 5 and not killed:
      killed.append(os.kill(os.getpid(), signal.SIGTERM))
    return read(self, step, *args)

  monkeypatch.setattr(Reader, 'batch', kill)
  code, before, _ = train(job.run, tmp_path, stores, job)
  assert code == trainer.EXIT_PREEMPTED and len(before) < STEPS
  code, resumed, _ = train(job.run, tmp_path, stores, job)
  assert code == 0 and resumed == losses


@pytest.mark.slow
def test_a_checkpoint_holds_the_hash_of_the_id_space(unbroken):
  meta = listing.read_meta(unbroken[0] / 'checkpoints' / str(STEPS))
  assert meta['ids_sha256'] == mixed.SPACE.sha256
  wanted = meta | {'ids_sha256': 'f' * 64}
  with pytest.raises(ValueError, match='the id space of TASK must be'):
    preflight.check_saved(meta, wanted, 'runs/mixed')


def test_a_model_without_a_row_for_every_id_is_refused():
  preflight.check_ids(mixed.SPACE, 768)
  with pytest.raises(ValueError, match='VOCAB_SIZE=767 must be at least 768'):
    preflight.check_ids(mixed.SPACE, 767)


def test_an_unknown_id_range_is_refused_by_name():
  with pytest.raises(ValueError, match='got picture: change the name'):
    Data('all', [], 8, 8, ranges=(('picture', 8),))
