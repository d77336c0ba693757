"""Balance losses and statistics equal numbers that are computed by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from moe.parallel import mesh as mesh_lib
from moe.routing import balance, gates
from moe.routing.plan import RouterInputs

P = functools.partial
load_balance_loss = jax.jit(balance.load_balance_loss, static_argnames='scope')
logit_losses = jax.jit(balance.logit_losses, static_argnames='scope')
choice_statistics = jax.jit(balance.choice_statistics)

# Probabilities of one group with two tokens. `FIRST` is their choice, expert 0.
UNEVEN = np.array([[[0.9, 0.1], [0.7, 0.3]]], np.float32)
FIRST = np.zeros((1, 2, 1), np.int32)
BOTH = np.ones((1, 2), bool)


def read(logits, valid, modality=None):
  """Makes router inputs from what losses read: logits, padding and modality."""
  ids = np.zeros(valid.shape, np.int32)
  modality = ids if modality is None else modality
  return RouterInputs(ids, logits, ids, modality, valid, valid.shape[1])


def test_an_uneven_router_pays_more_than_an_even_one():
  # The loads are (1, 0), and the mean probabilities are (.8, .2). So the loss
  # is 2 * (1 * .8 + 0 * .2) = 1.6, times 2 tokens.
  total, weight = load_balance_loss(UNEVEN, FIRST, BOTH)
  assert float(total) == pytest.approx(3.2)
  assert float(weight) == 2


def test_an_even_router_pays_one():
  # Loads and mean probabilities are 1/2, so the loss is 2 * (1/4 + 1/4) = 1.
  even = np.full((1, 2, 2), 0.5, np.float32)
  choice = np.array([[[0], [1]]], np.int32)
  total, weight = load_balance_loss(even, choice, BOTH)
  assert float(total / weight) == pytest.approx(1.0)


def test_every_choice_of_a_token_counts():
  # Both tokens choose expert 0 first and expert 1 second. All choices count, so
  # the loads are (1/2, 1/2), and the loss is 2 * (.5 * .8 + .5 * .2) = 1.
  choices = np.array([[[0, 1], [0, 1]]], np.int32)
  total, weight = load_balance_loss(UNEVEN, choices, BOTH)
  assert float(total / weight) == pytest.approx(1.0)


def test_padding_is_not_counted_by_the_load_balance_loss():
  padded = load_balance_loss(UNEVEN, FIRST, np.array([[False, True]]))
  # Only the second token counts, so the loss is 2 * (1 * .7 + 0 * .3) = 1.4.
  assert float(padded[0]) == pytest.approx(1.4)
  assert float(padded[1]) == 1


def test_groups_weigh_as_much_as_their_tokens():
  # Group 0 has the loss 1.6 and 2 tokens. Group 1 has a single valid token with
  # probabilities (1, 0), so its loss is 2. The sum is 1.6 * 2 + 2 * 1 = 5.2 for
  # 3 tokens.
  probs = np.concatenate([UNEVEN, [[[1.0, 0.0], [0.2, 0.8]]]]).astype('f4')
  valid = np.array([[True, True], [True, False]])
  total, weight = load_balance_loss(probs, np.zeros((2, 2, 1), np.int32), valid)
  assert float(total) == pytest.approx(5.2)
  assert float(weight) == 3


def test_a_group_of_padding_alone_is_nothing_and_has_a_finite_gradient():
  nothing = np.zeros((1, 2), bool)
  loss = lambda probs: load_balance_loss(probs, FIRST, nothing)[0]
  total, gradient = jax.value_and_grad(loss)(UNEVEN)
  assert float(total) == 0
  np.testing.assert_array_equal(gradient, 0)


def test_disagreeing_arguments_of_the_load_balance_loss_are_refused():
  with pytest.raises(ValueError, match='must agree on groups and tokens'):
    balance.load_balance_loss(UNEVEN, np.zeros((1, 3, 1), np.int32), BOTH)


def test_z_loss_is_the_squared_log_partition_of_valid_tokens():
  # The log-partition of token 0 is log(1 + 3) = log 4, and that of token 1 is
  # log(2 + 2), too. The last token is padding.
  logits = np.log(np.array([[[1, 3], [2, 2], [7, 9]]], np.float32))
  valid = np.array([[True, True, False]])
  total, weight = logit_losses(read(logits, valid), logits)['router_z']
  assert float(total) == pytest.approx(2 * math.log(4) ** 2)
  assert float(weight) == 2


def test_statistics_are_load_entropy_and_confidence():
  # The first token has probabilities (1/4, 3/4), and chooses expert 1, then
  # expert 0. The second token is padding.
  probs = np.array([[[0.25, 0.75], [0.5, 0.5]]], np.float32)
  choices = np.array([[[1, 0], [0, 1]]], np.int32)
  found = choice_statistics(probs, choices, np.array([[True, False]]))
  # The valid token gives each expert one row.
  np.testing.assert_array_equal(found['load'][0], [1, 1])
  assert float(found['load'][1]) == 2
  # The entropy is -(1/4 ln 1/4 + 3/4 ln 3/4) = .3466 + .2158 = .5623.
  assert float(found['entropy'][0]) == pytest.approx(0.5623, abs=1e-4)
  assert float(found['confidence'][0]) == 0.75
  assert float(found['entropy'][1]) == float(found['confidence'][1]) == 1


def test_renaming_the_experts_changes_no_loss():
  random = np.random.RandomState(0)
  probs = random.dirichlet(np.ones(8), (2, 4)).astype(np.float32)
  choices = random.randint(0, 8, (2, 4, 2)).astype(np.int32)
  valid = np.ones((2, 4), bool)
  order = random.permutation(8)
  new_name = np.argsort(order).astype(np.int32)
  before = load_balance_loss(probs, choices, valid)
  after = load_balance_loss(probs[..., order], new_name[choices], valid)
  np.testing.assert_allclose(after, before, rtol=1e-6)


def test_losses_and_statistics_are_float32_scalars_but_for_the_load():
  probs = jax.ShapeDtypeStruct((2, 4, 8), jnp.float32)
  choices = jax.ShapeDtypeStruct((2, 4, 2), jnp.int32)
  valid = jax.ShapeDtypeStruct((2, 4), jnp.bool_)
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  loads = jax.ShapeDtypeStruct((8,), jnp.float32)
  assert jax.eval_shape(load_balance_loss, probs, choices, valid) == (
    scalar,
    scalar,
  )
  ids = jax.ShapeDtypeStruct((2, 4), jnp.int32)
  inputs = RouterInputs(ids, probs, ids, ids, valid, 4)
  losses = jax.eval_shape(logit_losses, inputs, probs)
  assert set(losses.values()) == {(scalar, scalar)}
  assert jax.eval_shape(choice_statistics, probs, choices, valid) == {
    'load': (loads, scalar),
    'entropy': (scalar, scalar),
    'confidence': (scalar, scalar),
  }


# These values are from the tests of V-MoE's router (google-research/vmoe,
# vmoe/nn/routing_test.py): four tokens, three experts.
VMOE_PROBS = np.array(
  [[[0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7], [0.8, 0.2, 0.0]]], 'f4'
)
FOUR = np.ones((1, 4), bool)


def test_vmoe_gshard_loss_counts_first_choices():
  # The sums of probabilities over 4 tokens are 1.7, 1.1 and 1.2. First choices
  # are 0, 2, 2, 0, so the loss is 3 * (1/2 * 1.7/4 + 1/2 * 1.2/4) = 1.0875.
  first = VMOE_PROBS.argmax(axis=-1)[..., None].astype(np.int32)
  total, weight = load_balance_loss(VMOE_PROBS, first, FOUR)
  assert float(total / weight) == pytest.approx(1.0875, rel=1e-6)


def test_vmoe_importance_loss():
  # The sums of probabilities 1.7, 1.1 and 1.2 have the mean 4/3 and the
  # variance .0688889. The variance divided by the squared mean is .0387500.
  total, weight = jax.jit(balance.importance_loss)(VMOE_PROBS, FOUR)
  assert float(total / weight) == pytest.approx(0.03874999, rel=1e-5)
  assert float(weight) == 4


def test_vmoe_load_loss():
  # With new noise of deviation .1, the mean probabilities that an expert is one
  # of the two best are 1.000, .278 and .234. The loss is their squared
  # coefficient of variation.
  logits = np.float32(
    [[[0.9, 0.06, 0.04], [0.7, 0.18, 0.12], [0.85, 0.05, 0.1]]]
  )
  noise = np.float32(
    [
      [-0.037, 0.026, -0.018],
      [-0.074, 0.045, -0.015],
      [-0.067, -0.059, 0.073],
    ]
  )
  loss = jax.jit(balance.noisy_load_loss, static_argnums=(2, 3))
  total, weight = loss(logits, logits + noise, 0.1, 2, np.ones((1, 3), bool))
  assert float(total / weight) == pytest.approx(0.48573864, rel=1e-5)


def test_importance_and_load_leave_padding_out():
  padded = np.concatenate([VMOE_PROBS, np.float32([[[1, 0, 0]]])], axis=1)
  valid = np.arange(5)[None] < 4
  total, weight = jax.jit(balance.importance_loss)(padded, valid)
  assert float(total / weight) == pytest.approx(0.03874999, rel=1e-5)
  nothing = jax.jit(
    jax.value_and_grad(
      lambda p: balance.importance_loss(p, np.zeros((1, 5), bool))[0]
    )
  )(padded)
  np.testing.assert_array_equal(nothing[0], 0)
  np.testing.assert_array_equal(nothing[1], 0)


def test_deepseeks_bias_moves_by_the_sign_alone():
  # The experts have 5, 2, 1 and 0 rows, so the mean load is 2.
  bias = balance.signed_bias(
    jnp.array([0.0, 0.1, 0.2, 0.3]), jnp.array([5.0, 2.0, 1.0, 0.0]), 0.001
  )
  np.testing.assert_allclose(bias, [-0.001, 0.1, 0.201, 0.301], rtol=1e-6)


def random_choices(groups, tokens, experts=4):
  random = np.random.RandomState(0)
  probs = random.dirichlet(np.ones(experts), (groups, tokens))
  choices = np.argsort(-probs, axis=-1)[..., :2]
  valid = random.rand(groups, tokens) < 0.8
  return probs.astype(np.float32), choices.astype(np.int32), valid


def by_definition(probs, choices, valid):
  """(sum, weight) of the loss of tokens that are balanced together."""
  E = probs.shape[-1]
  tokens = list(zip(probs[valid], choices[valid], strict=True))
  f, p = np.zeros(E), np.zeros(E)
  for row, chosen in tokens:
    p += row / len(tokens)
    for e in chosen:
      f[e] += 1 / len(tokens) / len(chosen)
  return E * (f * p).sum() * len(tokens), len(tokens)


@pytest.mark.parametrize(
  'scope, shape',
  [
    ('group', (4, 6)),
    ('sequence', (8, 3)),
    ('sequence', (2, 12)),
    ('global', (1, 24)),
  ],
)
def test_the_loss_of_each_scope_equals_its_definition(scope, shape):
  given = random_choices(4, 6)
  total, weight = load_balance_loss(
    *given, scope=balance.Scope(scope, shape[1])
  )
  units = [a.reshape(*shape, *a.shape[2:]) for a in given]
  expected = np.sum([by_definition(*u) for u in zip(*units, strict=True)], 0)
  np.testing.assert_allclose((total, weight), expected, rtol=1e-5)


@pytest.mark.parametrize('length', [0, 5])
def test_sequences_that_are_divided_are_refused(length):
  with pytest.raises(ValueError, match='needs whole sequences on each device'):
    balance.Scope('sequence', length).units(np.zeros((4, 6)))


def test_global_loads_count_the_microbatches_so_far():
  probs, choices, valid = random_choices(1, 6)
  before = np.float32([5, 0, 0, 1])
  total, weight = load_balance_loss(
    probs, choices, valid, scope=balance.Scope('global'), load_before_E=before
  )
  counts = before + np.bincount(choices[valid].ravel(), minlength=4)
  p = probs[valid].sum(axis=0)
  assert float(total) == pytest.approx(4 * (counts / counts.sum() * p).sum())
  assert float(weight) == valid.sum()


def test_no_gradient_flows_through_the_loads():
  probs, choices, valid = random_choices(1, 6)
  loss = lambda p: balance.load_balance_loss(p, choices, valid)[0]
  gradient = np.asarray(jax.jit(jax.grad(loss))(probs))
  f = np.bincount(choices[valid].ravel(), minlength=4) / choices[valid].size
  np.testing.assert_allclose(
    gradient[valid], np.tile(4 * f, (valid.sum(), 1)), rtol=1e-5
  )
  np.testing.assert_array_equal(gradient[~valid], 0)


def route_all(router, batch_axes, logits, given):
  """Routes one device's groups; returns (losses, statistics) of all devices."""
  inputs = RouterInputs(
    jnp.zeros((*logits.shape[:2], 1)), logits, *given, 8, batch_axes
  )
  keys = jax.random.split(jax.random.key(0), logits.shape[0])
  plan = router.route(inputs, router.init_state(8), keys, True)
  found = (plan.losses, plan.statistics)
  return jax.lax.psum(found, batch_axes) if batch_axes else found


@pytest.mark.parametrize(
  'router',
  [gates.TopK(2, 'global'), gates.Sigmoid(2, 'sequence'), gates.Quantile(2)],
  ids=['global', 'sequence', 'quantile'],
)
def test_losses_statistics_and_gradients_are_those_of_one_device(router):
  random = np.random.RandomState(0)
  logits = random.randn(16, 4, 8).astype(np.float32)
  modality = random.randint(0, 3, (16, 4)).astype(np.int32)
  valid = random.rand(16, 4) < 0.7
  given = (modality, modality, valid)
  part, whole = PartitionSpec('data'), PartitionSpec()
  sharded = jax.shard_map(
    P(route_all, router, ('data',)),
    mesh=mesh_lib.make_mesh(mesh_lib.MeshShape()),
    in_specs=(part, part),
    out_specs=whole,
    check_vma=False,
  )

  def differentiated(routing_fn):
    def total(logits):
      found = routing_fn(logits, given)
      # The trainer also divides each term by its weight, and adds the results.
      return sum(s / w for s, w in found[0].values()), found

    return jax.jit(jax.value_and_grad(total, has_aux=True))(logits)

  alone = differentiated(P(route_all, router, ()))
  close = P(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
  jax.tree.map(close, differentiated(sharded), alone)


def test_the_local_entropy_is_the_mean_over_valid_tokens():
  # The entropies are ln 2 and 0; the last token is padding.
  probs = np.float32([[[0.5, 0.5], [1, 0], [0.3, 0.7]]])
  inputs = read(probs, np.array([[True, True, False]]))
  total, weight = logit_losses(inputs, probs)['local_entropy']
  assert float(total) == pytest.approx(math.log(2)) and float(weight) == 2


def test_the_global_entropy_is_of_each_modalitys_mean():
  # Modality 0 has 2 tokens with (1, 0) and (0, 1). Their mean (1/2, 1/2) has
  # the negative entropy -ln 2. Modality 1 has 1 valid token with (3/4, 1/4),
  # which has 3/4 ln 3/4 + 1/4 ln 1/4 = -.562335.
  probs = np.float32([[[1, 0], [0.75, 0.25], [0, 1], [0.2, 0.8]]])
  modality = np.array([[0, 1, 0, 1]], np.int32)
  valid = np.array([[True, True, True, False]])
  inputs = read(probs, valid, modality)
  total, weight = logit_losses(inputs, probs)['global_entropy']
  assert float(total) == pytest.approx(-2 * math.log(2) - 0.562335, rel=1e-5)
  assert float(weight) == 3


@pytest.mark.parametrize('name', ['group', 'global'])
def test_the_gradient_of_the_global_entropy_is_that_of_its_definition(name):
  random = np.random.RandomState(0)
  logits = jnp.asarray(random.randn(2, 6, 4), jnp.float32)
  modality = random.randint(0, 3, (2, 6)).astype(np.int32)
  valid = random.rand(2, 6) < 0.8

  def definition(logits):
    probs = jax.nn.softmax(logits, axis=-1)
    total = jnp.float32(0)
    flat = name == 'global'
    for g in range(1 if flat else 2):
      index = slice(None) if flat else slice(g, g + 1)
      for m in range(3):
        mask = (valid & (modality == m))[index].astype(np.float32)
        n = max(mask.sum(), 1.0)
        mean = jnp.einsum('GME,GM->E', probs[index], mask) / n
        total += n * jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-30)))
    return total

  def found(logits):
    probs = jax.nn.softmax(logits, axis=-1)
    inputs = read(logits, valid, modality)
    scope = balance.Scope(name)
    return balance.logit_losses(inputs, probs, scope)['global_entropy'][0]

  pairs = [jax.jit(jax.value_and_grad(f))(logits) for f in (found, definition)]
  jax.tree.map(P(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *pairs)


def test_counts_are_those_of_bincount_and_leave_no_choice_out():
  random = np.random.RandomState(0)
  choices = random.randint(-1, 5, (3, 20, 4)).astype(np.int32)
  valid = random.rand(3, 20) < 0.7
  counts = jax.jit(balance.choice_counts, static_argnums=2)(choices, valid, 5)
  for g in range(3):
    chosen = choices[g][valid[g]].ravel()
    expected = np.bincount(chosen[chosen >= 0], minlength=5)
    np.testing.assert_array_equal(counts[g], expected)


def test_counting_makes_no_array_of_choices_times_experts():
  G, M, A, E = 4, 2048, 32, 512
  compiled = (
    jax.jit(balance.choice_counts, static_argnums=2)
    .lower(
      jax.ShapeDtypeStruct((G, M, A), jnp.int32),
      jax.ShapeDtypeStruct((G, M), jnp.bool_),
      E,
    )
    .compile()
  )
  # An array [G, M, A, E] would have 134 million numbers; an array [G, M, E] has
  # 4.2 million.
  assert compiled.memory_analysis().temp_size_in_bytes <= 4 * G * M * E + 1e6
