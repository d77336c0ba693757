import pytest

from moe.optim import schedules


def test_rsqrt_at_warm_up_peak_and_later():
  rate = schedules.rsqrt(2.0, warmup_steps=4, train_steps=100)
  assert float(rate(0)) == pytest.approx(2 * 1 / 4)
  assert float(rate(1)) == pytest.approx(2 * 2 / 4)
  assert float(rate(3)) == pytest.approx(2.0)
  # After 4 steps of warm-up, the rate of update n is sqrt(4 / n) of the peak:
  # 1/2 for n = 16, and 1/5 for n = 100.
  assert float(rate(15)) == pytest.approx(1.0)
  assert float(rate(99)) == pytest.approx(0.4)


def test_cosine_at_warm_up_peak_middle_and_end():
  rate = schedules.cosine(2.0, warmup_steps=10, train_steps=110)
  assert float(rate(0)) == pytest.approx(2 * 1 / 10)
  assert float(rate(9)) == pytest.approx(2.0)
  assert float(rate(10)) == pytest.approx(2.0)
  # The rate falls from 1 to 1/10 of the peak. In the middle, the cosine gives
  # 1/10 plus (1 + cos(pi / 2)) / 2 = 1/2 of the other 9/10.
  assert float(rate(60)) == pytest.approx(2 * (0.1 + 0.9 / 2))
  assert float(rate(110)) == pytest.approx(0.2)
  assert float(rate(500)) == pytest.approx(0.2)


def test_wsd_at_warm_up_plateau_decay_and_end():
  rate = schedules.wsd(1.0, warmup_steps=10, train_steps=100)
  assert float(rate(0)) == pytest.approx(0.1)
  assert float(rate(9)) == pytest.approx(1.0)
  assert float(rate(40)) == pytest.approx(1.0)
  # The decay takes the last 30 of 100 steps.
  assert float(rate(70)) == pytest.approx(1.0)
  assert float(rate(85)) == pytest.approx(0.5)
  assert float(rate(99)) == pytest.approx(1 / 30)
  assert float(rate(100)) == 0.0


def test_wsd_ends_at_the_final_fraction():
  rate = schedules.wsd(2.0, 0, 100, decay_fraction=0.5, final_fraction=0.1)
  assert float(rate(50)) == pytest.approx(2.0)
  assert float(rate(75)) == pytest.approx(2 * (0.1 + 0.9 / 2))
  assert float(rate(100)) == pytest.approx(0.2)


@pytest.mark.parametrize('name', ['rsqrt', 'cosine', 'wsd'])
def test_without_a_warm_up_the_first_rate_is_the_peak(name):
  rate = getattr(schedules, name)(3.0, 0, 50)
  assert float(rate(0)) == pytest.approx(3.0)


@pytest.mark.parametrize('name', ['rsqrt', 'cosine', 'wsd'])
@pytest.mark.parametrize(
  ('warmup', 'steps', 'fragment'),
  [
    (-1, 50, 'warmup_steps=-1 must be at least 0'),
    (51, 50, 'warmup_steps=51 must be at most TRAIN_STEPS=50'),
    (2, 0, 'train_steps=0 must be at least 1'),
  ],
)
def test_a_warm_up_that_is_no_part_of_the_run_is_refused(
  name, warmup, steps, fragment
):
  with pytest.raises(ValueError, match=fragment):
    getattr(schedules, name)(1.0, warmup, steps)


@pytest.mark.parametrize('fraction', [0.0, 1.5, -0.1])
def test_wsd_refuses_a_decay_that_is_no_part_of_the_run(fraction):
  with pytest.raises(ValueError, match='decay_fraction'):
    schedules.wsd(1.0, 0, 50, decay_fraction=fraction)
