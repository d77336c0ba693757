from moe.scale import topology


def test_peaks_are_known_by_the_name_that_jax_gives_a_device():
  assert topology.peak_flops('TPU v4') == 275e12
  assert topology.peak_flops('TPU v5 lite') == 197e12
  # A device is half a chip there, 2,307 TFLOP/s a chip.
  assert topology.peak_flops('TPU7x') == 2307e12 / 2


def test_the_peak_of_a_cpu_is_not_known():
  assert topology.peak_flops('cpu') is None


def test_peaks_are_flops_of_one_device_a_second():
  assert all(5e13 < p < 1e16 for p in topology.PEAK_BFLOAT16.values())
