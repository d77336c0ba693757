"""Cases for tests: routers, and reference functions for their choices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe.routing import gates
from moe.routing.plan import RouterInputs
from tests.routing import reference_plans as reference

P = functools.partial
G, M, E = 2, 12, 8
KEYS = jax.random.split(jax.random.key(0), 8)


def route(router, logits_GME, valid_GM=None, state=None, train=True, **inputs):
  logits_GME = jnp.asarray(logits_GME, jnp.float32)
  groups, tokens, _ = logits_GME.shape
  zeros_GM = jnp.zeros((groups, tokens), jnp.int32)
  given = RouterInputs(
    jnp.zeros((groups, tokens, 4), jnp.float32),
    logits_GME,
    inputs.get('token_ids', zeros_GM),
    inputs.get('modality', zeros_GM),
    jnp.ones((groups, tokens), bool) if valid_GM is None else valid_GM,
    tokens,
  )
  keys_G = inputs.get('keys', KEYS[:groups])
  return router.route(given, state or {}, keys_G, train)


routed = jax.jit(route, static_argnums=0, static_argnames='train')


def logits_of(kind, columns):
  """Makes logits [G, M, columns]: 'random', 'ties' or 'all to one'."""
  random = np.random.RandomState(7)
  logits = random.randn(G, M, columns).astype(np.float32)
  if kind == 'ties':
    logits[:] = 0
  if kind == 'all to one':
    logits = np.float32(0.01) * logits
    logits[..., 3] += 6
  return logits


IDS = np.random.RandomState(3).randint(0, 9999, (G, M)).astype(np.int32)
MODALITY = np.random.RandomState(4).randint(0, 3, (G, M)).astype(np.int32)
# The last group ends with five tokens of padding.
VALID = np.arange(M) < np.array([[M], [M - 5]])
BIAS = np.random.RandomState(5).uniform(-0.3, 0.3, 11).astype(np.float32)
BIASED = {'bias_E': BIAS[:E], 'load_E': np.zeros(E, np.float32)}


def normal(g, columns):
  return np.asarray(jax.random.normal(KEYS[g], (M, columns), jnp.float32))


def uniform(g):
  return np.asarray(jax.random.uniform(KEYS[g], (M,), jnp.float32)).tolist()


NULL = gates.NullExperts(2, num_null=2, num_copy=1)
MASKED = gates.ModalityGrouped(2, reserved=(4, 2))
# Name -> (router, its state, reference function in plain Python). The function
# takes the number of a group, its logits and its valid tokens, and returns the
# choices.
CASES = {
  'top-k': (gates.TopK(2), {}, lambda g, x, v: reference.top_k(x, v, 2)),
  'top-k, plain weights': (
    gates.TopK(3, renormalize=False),
    {},
    lambda g, x, v: reference.top_k(x, v, 3, renormalize=False),
  ),
  'top-k in groups': (
    gates.TopK(3, renormalize=False, num_groups=4, top_groups=2, scaling=16.0),
    {},
    lambda g, x, v: reference.top_k_in_groups(x, v, 3, (4, 2, 16.0)),
  ),
  'switch': (
    gates.Switch(),
    {},
    lambda g, x, v: reference.top_k(x, v, 1, renormalize=False),
  ),
  'noisy top-k': (
    gates.NoisyTopK(2),
    {},
    lambda g, x, v: reference.top_k(
      (np.float32(x) + normal(g, E) / np.float32(E)).tolist(),
      v,
      2,
      renormalize=False,
    ),
  ),
  'gshard': (
    gates.GShard(2),
    {},
    lambda g, x, v: reference.gshard(x, v, uniform(g)),
  ),
  'sigmoid': (
    gates.Sigmoid(2, scaling=2.5),
    BIASED,
    lambda g, x, v: reference.sigmoid_top_k(x, v, 2, BIAS[:E], (1, 1, 2.5)),
  ),
  'sigmoid in groups': (
    gates.Sigmoid(3, num_groups=4, top_groups=2),
    BIASED,
    lambda g, x, v: reference.sigmoid_top_k(x, v, 3, BIAS[:E], (4, 2, 1.0)),
  ),
  'quantile': (
    gates.Quantile(2),
    {'bias_E': BIAS[:E]},
    lambda g, x, v: reference.quantile_top_k(x, v, 2, BIAS[:E]),
  ),
  'hash': (
    gates.Hash(3),
    {},
    lambda g, x, v: reference.hashed(IDS[g].tolist(), v, 3, E),
  ),
  'expert choice': (
    gates.ExpertChoice(2),
    {},
    lambda g, x, v: reference.expert_choice(x, v, 2),
  ),
  'expert choice, capped': (
    gates.ExpertChoice(3, max_per_token=2),
    {},
    lambda g, x, v: reference.expert_choice(x, v, 3, max_per_token=2),
  ),
  'sinkhorn': (
    gates.Sinkhorn(2, num_iterations=3),
    {},
    lambda g, x, v: reference.sinkhorn_top_k(x, v, 2, 3),
  ),
  'null experts': (
    NULL,
    {},
    lambda g, x, v: reference.without_added(
      reference.top_k(x, v, 2), E, num_null=2
    )[0],
  ),
  'modality-grouped': (
    MASKED,
    {},
    lambda g, x, v: reference.top_k(
      reference.masked(x, MODALITY[g], (4, 2)), v, 2
    ),
  ),
}
INPUTS = {'token_ids': IDS, 'modality': MODALITY, 'keys': KEYS[:G]}


def choices_of(plan, g):
  """Returns {(token, expert): weight} of valid rows, which must be distinct."""
  rows = np.flatnonzero(plan.valid_GR[g])
  columns = (plan.token_GR[g], plan.expert_GR[g], plan.weight_GR[g])
  token, expert, weight = (np.asarray(a)[rows].tolist() for a in columns)
  pairs = list(zip(token, expert, strict=True))
  assert len(set(pairs)) == len(pairs)
  return dict(zip(pairs, weight, strict=True))
