import numpy as np
import pytest

from moe.evaluate import comparison, picture_sets


def points(*scales, mean=(0.0, 0.0)):
  """Features with a given mean and the covariance diag(scales^2)."""
  # The 4 numbers s, -s, 0 and 0 have the unbiased variance 2 s^2 / 3.
  root = np.sqrt(1.5)
  x, y = (root * s for s in scales)
  return np.array([(x, 0), (-x, 0), (0, y), (0, -y)]) + np.array(mean)


def test_the_distance_of_two_gaussians_by_hand():
  # The covariances diag(1, 9) and diag(4, 25) commute. So the distance is
  # |(3, 4)|^2 + (1 - 2)^2 + (3 - 5)^2 = 25 + 1 + 4.
  one, other = points(1, 3), points(2, 5, mean=(3, 4))
  assert picture_sets.frechet_distance(one, other) == pytest.approx(30)


def test_the_distance_of_gaussians_whose_covariances_do_not_commute():
  # B is diag(4, 1) turned by 45 degrees: ((2.5, 1.5), (1.5, 2.5)). The root of
  # a 2 x 2 matrix M has the trace sqrt(tr M + 2 sqrt(det M)). With A =
  # diag(9, 1), tr(A B) = 22.5 + 2.5 and det(A B) = 9 * 4, so the distance is
  # 10 + 5 - 2 sqrt(25 + 12).
  turn = np.array([(1, 1), (-1, 1)]) / np.sqrt(2)
  one, other = points(3, 1), points(2, 1) @ turn
  wanted = 15 - 2 * np.sqrt(37)
  assert picture_sets.frechet_distance(one, other) == pytest.approx(wanted)
  assert picture_sets.frechet_distance(other, one) == pytest.approx(wanted)


def test_equal_features_that_are_constant_have_distance_0():
  # A network often has units that are 0 for all pictures.
  features = np.zeros((5, 3))
  assert picture_sets.frechet_distance(features, features) == 0


def test_the_kernel_distance_by_hand():
  # The kernel of 1-dim features is (x y + 1)^3. Within {0, 1} the only pair has
  # (0 + 1)^3 = 1, and within {1, 2} it has 27. The four pairs across the sets
  # have 1, 1, 8 and 27, with the mean 9.25. So KID is 1 + 27 - 2 * 9.25 = 9.5.
  a, b = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
  assert picture_sets.kernel_distance(a, b) == pytest.approx(9.5)


def test_the_kernel_distance_has_no_bias_for_small_sets():
  rng = np.random.default_rng(0)
  draws = [
    picture_sets.kernel_distance(
      rng.normal(size=(8, 4)), rng.normal(size=(8, 4))
    )
    for _ in range(400)
  ]
  error = np.std(draws) / np.sqrt(len(draws))
  assert abs(np.mean(draws)) < 3 * error


def test_the_floor_takes_disjoint_sets_of_the_given_size():
  real = np.arange(8.0)[:, None]
  one, other = picture_sets.two_sets(real, 4)
  assert sorted([*one[:, 0], *other[:, 0]]) == list(range(8))
  with pytest.raises(ValueError, match='two sets of 5 real pictures'):
    picture_sets.two_sets(real, 5)


@pytest.fixture
def few_resamples(monkeypatch):
  """Makes the intervals worthless, and their computation fast."""
  monkeypatch.setattr(comparison, '_RESAMPLES_OF_SETS', 1)


def values_of(drawn, real):
  return np.array([s.value for s in picture_sets.scores(drawn, real, '', '')])


def test_a_large_feature_counts_as_much_as_the_others(few_resamples):
  rng = np.random.default_rng(0)
  real, drawn = rng.normal(size=(200, 16)), rng.normal(1, 1, size=(100, 16))
  before = values_of(drawn, real)
  scale = np.array([30.0] + 15 * [1.0])
  after = values_of(scale * drawn, scale * real)
  np.testing.assert_allclose(after, before, rtol=0.1)
  np.testing.assert_allclose(values_of(7 * drawn, 7 * real), before)


def test_a_feature_of_one_real_picture_does_not_decide_the_distance(
  few_resamples,
):
  rng = np.random.default_rng(0)
  real, drawn = rng.normal(size=(1500, 16)), rng.normal(1, 1, size=(200, 16))
  before = values_of(drawn, real)
  seldom = lambda count, of: 5.0 * (np.arange(of) < count)[:, None]
  after = values_of(
    np.hstack([drawn, seldom(10, 200)]), np.hstack([real, seldom(1, 1500)])
  )
  # The new feature is 5 for 5% of the drawn pictures, and 0 for the others. So
  # its variance is 1.2 and its mean 0.25. FD-own grows by 1.2 + 0.25^2.
  np.testing.assert_allclose(after[0] - before[0], 1.25, atol=0.2)
  np.testing.assert_allclose(after[1:], before[1:], rtol=0.15, atol=0.01)


def test_distances_have_intervals_as_wide_as_their_spread(monkeypatch):
  rng = np.random.default_rng(0)
  draw = lambda: (rng.normal(1, 1, size=(40, 3)), rng.normal(size=(80, 3)))
  drawn, real = draw()
  found = picture_sets.scores(drawn, real, '', '')
  assert picture_sets.scores(drawn[:1], real, '', '') == []
  widths = np.array([(score.high - score.low) / 2 for score in found])
  monkeypatch.setattr(comparison, '_RESAMPLES_OF_SETS', 1)
  spread = np.std([values_of(*draw()) for _ in range(50)], axis=0)
  share = widths / (1.96 * spread)
  assert (share > 0.5).all()
  # A resample repeats members, which changes a small distance much. So the
  # intervals of real pictures against real ones are too wide.
  is_of_drawn = ['drawn against real' in score.name for score in found]
  assert sum(is_of_drawn) == 2 and (share[is_of_drawn] < 2).all()


def test_the_nearest_picture_is_found_across_chunks(monkeypatch):
  monkeypatch.setattr(picture_sets, '_ROWS', 2)
  others = np.array([[0, 0], [10, 10], [4, 0]], np.uint8)
  pictures = np.array([[10, 9], [1, 1], [3, 0]], np.uint8)
  distance, number = picture_sets.nearest(pictures, others)
  np.testing.assert_array_equal(number, [1, 0, 2])
  # The differences are (0, 1), (1, 1) and (1, 0). The distance is the root of
  # the mean of the squares.
  np.testing.assert_allclose(distance, [0.5**0.5, 1, 0.5**0.5], rtol=1e-6)


def test_copied_pictures_are_nearer_than_held_out_ones():
  # The 5th percentile of the distances of held-out pictures is 1.1.
  held_out = np.linspace(1, 3, 21)
  found = picture_sets.is_nearer(np.array([0, 1.05, 1.15, 3]), held_out)
  np.testing.assert_array_equal(found, [True, True, False, False])


@pytest.mark.parametrize('num_real, num', [(40, 20), (30, 15)])
def test_all_distances_are_of_equally_many_pictures(num_real, num):
  rng = np.random.default_rng(0)
  real, drawn = rng.normal(size=(num_real, 3)), rng.normal(2, 1, size=(20, 3))
  scores = picture_sets.scores(drawn, real, 'clothes', 'a command')
  assert {score.n for score in scores} == {num}
  assert not any(score.is_higher_better for score in scores)
  values = {
    score.name.removeprefix('clothes: '): score.value for score in scores
  }
  for distance in ('FD-own', 'KID'):
    floor = values[f'{distance}, real against real']
    assert values[f'{distance}, drawn against real'] > floor


def test_a_single_picture_has_no_distance():
  with pytest.raises(ValueError, match='at least 2 pictures'):
    picture_sets.frechet_distance(np.ones((1, 2)), np.ones((3, 2)))
