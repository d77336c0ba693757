import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe.layers.attention import Attention
from moe.layers.feed_forward import FeedForward
from moe.layers.moe_layer import MoE
from moe.models.block import Block
from moe.models.decoder import Decoder
from moe.models.functional import Functional
from moe.models.parametrisation import CompleteP
from moe.models.stack import Stack
from moe.optim import optimizers
from moe.optim.groups import Factors
from moe.runs import build
from tests.models import factories

WIDTHS = (32, 64, 128)
BATCH = factories.make_batch([[1] * 16] * 4)


def decoder(width, num_layers, parametrisation):
  block = functools.partial(
    Block,
    attention=functools.partial(
      Attention, num_heads=width // 16, num_kv_heads=width // 16, head_dim=16
    ),
    feed_forward=functools.partial(FeedForward, width=2 * width),
    moe=functools.partial(
      MoE, num_experts=4, expert_d_ff=width, group_size=16, top_k=2
    ),
  )
  return Decoder(
    functools.partial(Stack, block=block, num_layers=num_layers),
    vocab_size=factories.VOCAB_SIZE,
    d_model=width,
    parametrisation=parametrisation,
  )


def change_of_logits(width, num_layers, parametrisation, made):
  """RMS change of the logits in two training steps, as a mean over 3 seeds."""
  model = decoder(width, num_layers, parametrisation)
  functional = Functional(model)
  factors = None
  if parametrisation:
    factors = lambda name, is_orthogonal: Factors(
      rate_alone=parametrisation.rate(name, is_orthogonal, width)
    )
  optimizer = optimizers.build(
    made(optax.constant_schedule(0.02), weight_decay=0.0, factors=factors)
  )

  def logits(params):
    outputs = functional.apply(params, {}, BATCH, None, False)
    return functional.head(params, outputs.hidden)

  def loss(params):
    probs = jax.nn.log_softmax(logits(params))
    picked = jnp.take_along_axis(probs, BATCH.targets[..., None], axis=-1)
    return -picked.mean()

  @jax.jit
  def run(key):
    params, _, _ = functional.init(key, BATCH)
    before, state = logits(params), optimizer.init(params)
    for _ in range(2):
      grads = jax.grad(loss)(params)
      updates, state = optimizer.update(grads, state, params)
      params = optax.apply_updates(params, updates)
    return jnp.sqrt(jnp.mean(jnp.square(logits(params) - before)))

  return float(np.mean([run(jax.random.key(seed)) for seed in range(3)]))


@pytest.mark.slow
@pytest.mark.parametrize('made', [optimizers.adamw, optimizers.muon])
def test_a_step_changes_logits_by_as_much_at_each_width(made):
  same = CompleteP(base_width=32, base_depth=2)
  changes = [change_of_logits(w, 2, same, made) for w in WIDTHS]
  assert max(changes) / min(changes) < 1.6
  standard = [change_of_logits(w, 2, None, made) for w in WIDTHS]
  # With the same learning rate at all widths, the change of the tables alone
  # makes the change of the logits grow with the square root of the width.
  assert standard[0] < standard[1] < standard[2]
  assert standard[2] / standard[0] > 2


def test_at_its_base_size_nothing_changes():
  base = CompleteP(base_width=32, base_depth=2)
  changed, plain = decoder(32, 2, base), decoder(32, 2, None)
  of = lambda model: Functional(model).init(jax.random.key(0), BATCH)[0]
  params = jax.jit(lambda: of(plain))()
  for a, b in zip(
    jax.tree.leaves(jax.jit(lambda: of(changed))()),
    jax.tree.leaves(params),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  hidden = lambda model: jax.jit(
    lambda p: Functional(model).apply(p, {}, BATCH, None, False).hidden
  )(params)
  np.testing.assert_array_equal(hidden(changed), hidden(plain))


@pytest.mark.parametrize(
  ('name', 'is_orthogonal', 'rate'),
  [
    ('embedding/table', False, 0.5),
    ('stack/periods/block_0/moe/router', False, 0.25),
    ('stack/periods/block_0/moe/w_up_EDF', False, 0.25),
    ('stack/periods/block_0/moe/w_up_EDF', True, 0.5),
    ('stack/periods/block_0/attention/query', False, 0.25),
    ('stack/periods/block_0/attention/query_norm/scale', False, 1.0),
    ('last_norm/scale', False, 1.0),
  ],
)
def test_rates_at_four_times_the_base_width(name, is_orthogonal, rate):
  assert CompleteP(16, 2).rate(name, is_orthogonal, 64) == rate


def test_residual_branches_of_a_deeper_model_count_less():
  assert CompleteP(16, 2).residual_scale(8) == 0.25


def test_training_with_another_scale_of_embeddings_is_refused():
  # The model can be made, so older runs with this scale can still be loaded.
  model = factories.make_decoder(
    decoder={'parametrisation': CompleteP(16, 2), 'embedding_scale': 1.0}
  )
  # The learning rate of tables assumes that embeddings get the factor
  # sqrt(width).
  with pytest.raises(ValueError, match='EMBEDDING_SCALE must be None'):
    build.build(types.SimpleNamespace(model=model))


def test_a_base_size_of_zero_is_refused():
  with pytest.raises(ValueError, match='base_depth=0 must be'):
    CompleteP(16, 0)
