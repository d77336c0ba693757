"""A run trained on a mixture of pictures, texts and residues.

There are three tasks: a picture as a block and then its caption, a caption and
then the codes of its picture, and residues as a partly masked block. The model
reads the row and the column of each code.
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
from moe.data.store import Store
from moe.evaluate import documents, likelihood
from moe.infer import decode, sampling
from moe.infer.prompts import RowPrompt
from moe.layers.moe_layer import MoE
from moe.modalities.ids import EOS
from moe.modalities.text import train_vocabulary
from moe.models.decoder import Decoder
from moe.models.stack import Stack
from moe.objectives.language import language_model
from moe.objectives.modalities import by_modality
from moe.optim import optimizers
from moe.parallel.mesh import MeshShape
from moe.routing import dispatch, gates
from moe.runs import build, preflight, trained, training
from moe.runs.run import Data, Run
from moe.train import trainer
from tests.data import mixed
from tests.models import factories

LENGTH, ROWS, STEPS = 20, 16, 8
MASK = transforms.MaskBlocks(0.25)
RANGES = (('command', 1), ('image', 8), ('residue', 5))
# Each of three modalities has two experts, and two more are for all.
ROUTER = functools.partial(gates.ModalityGrouped, reserved=(2, 2, 2))


def model_of(**options):
  """A decoder whose sparse layer has these options."""
  moe = functools.partial(
    MoE,
    num_experts=8,
    expert_d_ff=8,
    router=ROUTER,
    num_modalities=3,
    **options,
  )
  return Decoder(
    functools.partial(
      Stack,
      block=functools.partial(factories.make_block(), moe=moe),
      num_layers=1,
    ),
    vocab_size=mixed.SPACE.size,
    d_model=8,
    extra_tables=(('row', 3), ('column', 4)),
    ranges=RANGES,
    code_levels=(8,),
  )


MODEL = model_of(group_size=LENGTH)


@pytest.fixture(scope='module')
def stores(tmp_path_factory):
  """The vocabulary directory with the stores of the mixture's three tasks."""
  directory = tmp_path_factory.mktemp('mixed')
  letters = ''.join(chr(0x4E00 + i) for i in range(60))
  path = directory / 'vocabulary.model'
  vocabulary = train_vocabulary([letters], mixed.SPACE.text, path, 'char')
  assert vocabulary.size == mixed.SPACE.text
  for seed, split in enumerate(('train', 'validation')):
    for kind in mixed.KINDS:
      path = directory / kind / split
      facts = {'vocabulary_sha256': vocabulary.sha256}
      mixed.write(path, kind, 40, seed, mixed.places, **facts)
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
    objective=functools.partial(by_modality, language=language_model),
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
  """Trains a run; returns (exit code, loss of each step, job)."""
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


@pytest.fixture(scope='module')
def alone(stores, tmp_path_factory):
  """The losses of `without_groups` on one device."""
  one = jax.devices()[:1]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('jax.devices', lambda *args: one)
    run = without_groups(MeshShape())
    return train(run, tmp_path_factory.mktemp('alone'), stores)[1]


def without_groups(mesh):
  """A run whose losses do not depend on the groups of tokens.

  Devices that share a sequence have other groups. So no token is dropped, and
  no loss is computed by group.
  """
  model = model_of(
    group_size=LENGTH // 2,
    dispatch=functools.partial(dispatch.Sorted, capacity_factor=8.0),
  )
  language = functools.partial(language_model, load_balance=0.0, num_chunks=2)
  return dataclasses.replace(
    run_of(mesh),
    model=model,
    objective=functools.partial(by_modality, language=language),
  )


@pytest.mark.nightly
@pytest.mark.parametrize(
  'mesh',
  [
    MeshShape(data=2, context=2, model=2),
    MeshShape(data=2, fsdp=2, expert=2),
  ],
  ids=['context_model', 'fsdp_expert'],
)
def test_each_layout_trains_like_one_device(mesh, alone, stores, tmp_path):
  _, losses, _ = train(without_groups(mesh), tmp_path, stores)
  np.testing.assert_allclose(losses, alone, atol=1e-5)


@pytest.mark.slow
def test_a_log_tells_modalities_apart(unbroken):
  with open(unbroken[0] / 'log.jsonl') as log:
    record = json.loads(list(log)[-1])
  for name in ('text', 'image', 'protein'):
    assert record[f'cross_entropy_{name}'] > 0
    # A modality may use its own two experts, and the two that are open to all.
    assert 1 <= record[f'experts_used_{name}'] <= 4
    load_E = np.array(record['layers'][f'load_{name}'][0])
    np.testing.assert_allclose(load_E.sum(), 1, atol=1e-4)
  assert not np.any(np.array(record['layers']['load_text'][0])[2:6])


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


@pytest.fixture(scope='module')
def read_back(unbroken):
  """The trained run, on eight devices."""
  run = run_of(MeshShape(data=2, expert=4))
  return trained.read_back(run, trained.find(str(unbroken[0])))


@pytest.fixture(scope='module')
def drawn(stores):
  """A record: a caption, then the codes of a picture."""
  record = Store(stores / 'drawn/validation').read(range(1))[0]
  return record | {'num_chars': mixed.CODES, 'num_bytes': mixed.CODES}


@pytest.mark.slow
def test_rows_and_columns_were_trained_and_count_in_a_score(read_back, drawn):
  with jax.set_mesh(read_back.mesh):
    initial = build.build(read_back.run).init().params
  for name in ('row_embedding', 'column_embedding'):
    before, after = (p[name]['table'] for p in (initial, read_back.params))
    assert np.abs(np.asarray(after) - np.asarray(before)).max(axis=1).all()

  def nats(record):
    document = documents.record_document(
      read_back.vocabulary, read_back.ids, record, read_back.functional.extras
    )
    return likelihood.score_documents(
      read_back.functional,
      read_back.params,
      read_back.state,
      [document],
      likelihood.Context(LENGTH, LENGTH, 8),
    )

  with jax.set_mesh(read_back.mesh):
    without = {k: v for k, v in drawn.items() if k != 'row'}
    assert abs(nats(drawn) - nats(without)) > 1e-3


@pytest.mark.slow
def test_codes_are_written_with_their_rows_and_columns(read_back, drawn):
  functional, params, state = (
    read_back.functional, read_back.params, read_back.state
  )  # fmt: skip
  prompt = drawn['tokens'][: mixed.LETTERS].tolist()
  extras = {
    e.name: [drawn[e.name].astype(e.dtype)] * 8 for e in functional.extras
  }
  told = {name: values[0] for name, values in extras.items()}
  codes = mixed.SPACE.ids('image', np.arange(8))
  table = np.full((1, mixed.SPACE.size), -1, np.int16)
  table[:, codes] = 0
  write = decode.build_writer(
    functional, sampling.Sampling(0.0), EOS, modality=mixed.SPACE.modality
  )
  with jax.set_mesh(read_back.mesh):
    written = decode.generate(
      write,
      params,
      state,
      [RowPrompt(prompt, table, extras=told)] * 8,
      mixed.CODES,
    )
  # Now the model reads all tokens at once, as in training. Each written code
  # must have the largest logit.
  tokens = np.array([[*prompt, *row] for row in written])
  batch = decode.read_batch(
    np.pad(tokens, ((0, 0), (1, 0))).astype(np.int32),
    np.full(8, tokens.shape[1] + 1, np.int32),
    np.zeros(8, np.int32),
    modality=mixed.SPACE.modality,
    extras={
      name: np.stack([np.insert(v[: tokens.shape[1]], 0, 0) for v in values])
      for name, values in extras.items()
    },
  )
  with jax.set_mesh(read_back.mesh):
    outputs = jax.jit(
      lambda p, s, b: functional.apply(p, s, b, None, False).hidden
    )(params, state, batch)
    logits = np.asarray(functional.head(params, outputs))
  likeliest = codes[logits[:, mixed.LETTERS : -1, codes].argmax(axis=-1)]
  np.testing.assert_array_equal(likeliest, written)


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
