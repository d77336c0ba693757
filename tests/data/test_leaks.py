"""The prediction of a token sees neither this token nor later tokens."""

import functools

import jax
import numpy as np
import pytest

from moe.data.reader import Reader
from moe.data.transforms import MaskBlocks
from moe.layers.moe_layer import MoE
from moe.models.decoder import Decoder
from moe.models.functional import Functional
from moe.models.stack import Stack
from moe.routing import gates
from tests.data import mixed
from tests.models import factories

# A row holds two documents at most.
LENGTH, ROWS = 20, 2
MASK = MaskBlocks(0.25)
ROUTER = functools.partial(gates.ModalityGrouped, reserved=(1, 1, 1))


@pytest.fixture(scope='module')
def logits():
  """A function from a batch to logits; large weights make changes visible."""
  moe = functools.partial(
    MoE, num_experts=5, expert_d_ff=8, group_size=LENGTH, router=ROUTER
  )
  block = functools.partial(factories.make_block(), moe=moe)
  functional = Functional(
    Decoder(
      functools.partial(Stack, block=block, num_layers=1),
      vocab_size=mixed.SPACE.size,
      d_model=8,
      tie_embeddings=False,
    )
  )
  random, found = np.random.RandomState(0), {}

  @jax.jit
  def read(params, batch):
    outputs = functional.apply(params, {}, batch, None, False)
    return functional.head(params, outputs.hidden)

  def of(batch):
    if not found:
      shapes = jax.eval_shape(
        lambda key: functional.init(key, batch)[0], jax.random.key(0)
      )
      found['params'] = jax.tree.map(
        lambda s: random.uniform(-1, 1, s.shape).astype(s.dtype), shapes
      )
    return np.asarray(read(found['params'], batch))

  return of


class Changed:
  """A transform that changes one token, then masks as `MASK` does."""

  def __init__(self, place):
    self._place = place

  def declare(self, shape):
    return MASK.declare(shape)

  def __call__(self, record, key, ids):
    tokens = record['tokens'].astype(np.int32)
    if self._place is not None:
      # Every range begins at a multiple of 128, so the new id has the same
      # modality.
      tokens[self._place] ^= 1
    return MASK({**record, 'tokens': tokens}, key, ids)


def batch_of(directory, place=None):
  reader = Reader(
    [directory], [1], LENGTH, ROWS, seed=0, transforms=[Changed(place)]
  )
  return reader.batch(0)


@pytest.mark.slow
@pytest.mark.parametrize('kind', mixed.KINDS)
def test_a_target_changes_no_logit_that_predicts_it_or_an_earlier_token(
  tmp_path, logits, kind
):
  directory = mixed.write(tmp_path / f'v/{kind}/train', kind, 8)
  batch = batch_of(directory)
  before, num_moved = logits(batch), 0
  for place in range(int(batch.positions.max())):  # The end mark is left out.
    changed = batch_of(directory, place)
    moved = np.abs(logits(changed) - before).max(axis=-1) > 1e-4
    is_predicted = (batch.loss_weights > 0) & (batch.segment_ids > 0)
    asked = is_predicted & (batch.positions == place)
    # The loop visits the documents in which this token is a target.
    for row, column in np.argwhere(asked):
      mine = batch.segment_ids[row] == batch.segment_ids[row, column]
      earlier = mine & is_predicted[row] & (batch.positions[row] <= place)
      assert not moved[row, earlier].any(), (place, row, column)
    num_moved += moved.sum()
  assert num_moved  # Without this, a model that ignores tokens would pass.


@pytest.mark.slow
def test_the_first_place_of_a_block_sees_its_last_token(tmp_path, logits):
  directory = mixed.write(tmp_path / 'v/described/train', 'described', 8)
  before = logits(batch_of(directory))
  # In a block, the place of the first code of the picture sees the last code.
  after = logits(batch_of(directory, mixed.CODES - 1))
  assert np.abs(after - before)[:, 1].max() > 1e-3
