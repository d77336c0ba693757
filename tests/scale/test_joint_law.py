"""The joint scaling law gives the losses of its paper."""

import pytest

from moe.scale import joint_law


@pytest.mark.parametrize(
  ('experts', 'm', 'mu', 'n', 'nu'),
  [
    (1, 30.3640, -0.1817, 53.9838, -0.1965),
    (8, 21.8330, -0.1676, 119.9126, -0.2338),
    (32, 16.5424, -0.1557, 234.6726, -0.2652),
  ],
)
def test_the_law_is_that_of_table_4(experts, m, mu, n, nu):
  # For a fixed number of experts the law is m N^mu + n D^nu + 1.3637. The
  # coefficients of the paper have four decimals.
  N, D = 1e9, 2e10
  expected = m * N**mu + n * D**nu + 1.3637
  assert joint_law.loss(N, D, experts) == pytest.approx(expected, rel=3e-3)


def test_more_experts_need_more_tokens_to_pay():
  # After 2e7 tokens a dense model has a lower loss than models with 8 and 64
  # experts. After 3.5e7 tokens only the model with 8 experts is better than the
  # dense model, and after 7e7 tokens both are.
  gains = [
    [joint_law.gain(1e6, tokens, experts) > 0 for experts in (8, 64)]
    for tokens in (2e7, 3.5e7, 7e7)
  ]
  assert gains == [[False, False], [True, False], [True, True]]
