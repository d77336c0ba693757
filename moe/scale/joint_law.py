"""A scaling law of dense and sparse models, to compare with measured losses.

Ludziejewski et al. (2025), "Joint MoE Scaling Laws", arXiv 2502.05172, equation
(6) and table 3. The law is about a model with N active parameters, embeddings
included, and E experts of equal size, one of which acts on each token. It gives
the loss after D tokens of web text. Other texts and tokenizers have different
losses, so this project uses only differences between two losses.
"""

import math

# The constants of the law, from table 3 of the paper.
_A, _ALPHA, _DELTA, _GAMMA = 35.91, -0.1889, -0.2285, 0.0098
_B, _BETA, _OMEGA, _ZETA = 35.98, -0.1775, 0.5529, -0.0259
_E_START, _E_MAX, _C = 2.0732, 290.4521, 1.3637


def loss(active: float, tokens: float, experts: float) -> float:
  """Loss in nats per token.

  Args:
    active: N, active parameters.
    tokens: D, training tokens.
    experts: E; 1 for a dense model. For a model with several active experts, E
      is the number of experts divided by the number of active experts.
  """
  start = 1 / (1 / _E_START - 1 / _E_MAX)
  effective = 1 / (1 / (experts - 1 + start) + 1 / _E_MAX)
  log = math.log(effective)
  of_size = _A * effective**_DELTA * active ** (_ALPHA + _GAMMA * log)
  of_data = _B * effective**_OMEGA * tokens ** (_BETA + _ZETA * log)
  return of_size + of_data + _C


def gain(active: float, tokens: float, experts: float) -> float:
  """The loss of a dense model minus the loss of a sparse model.

  The arguments and the unit are those of `loss`.
  """
  return loss(active, tokens, 1) - loss(active, tokens, experts)
