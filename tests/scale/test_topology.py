import pytest

from moe.scale import topology


def test_peaks_are_known_by_the_name_that_jax_gives_a_device():
  assert topology.peak_flops('TPU v4') == 275e12
  assert topology.peak_flops('TPU v5 lite') == 197e12
  assert (
    topology.peak_flops('TPU v5') == topology.peak_flops('TPU v5p') == 459e12
  )
  # A TPU7x device is half a chip, and a chip has 2,307 TFLOP/s.
  assert topology.peak_flops('TPU7x') == 2307e12 / 2


def test_the_peak_of_a_cpu_is_not_known():
  assert topology.peak_flops('cpu') is None


def test_a_chip_has_one_name_on_a_pod_and_in_a_topology_description():
  assert topology.kind_of('TPU v5p') == topology.kind_of('TPU v5')
  assert topology.kind_of('TPU v5 lite') == 'TPU v5 lite'


@pytest.mark.parametrize('name', topology.CHIPS)
def test_figures_of_a_chip_are_per_chip_and_in_bytes_and_seconds(name):
  chip = topology.CHIPS[name]
  assert 1e14 < chip.peak['bfloat16'] < 1e16
  assert 10e9 < chip.hbm_bytes < 300e9
  assert 5e11 < chip.hbm_bandwidth < 2e13
  # A chip's link is slower than its memory, and faster than the network.
  assert chip.network_bandwidth < chip.link_bandwidth < chip.hbm_bandwidth


def test_a_slice_counts_chips_and_devices_apart():
  slice_ = topology.parse('tpu7x:4x4x8')
  assert (slice_.num_chips, slice_.num_devices) == (128, 256)
  assert str(slice_) == 'tpu7x:4x4x8'


def test_a_dim_of_whole_cubes_or_of_a_whole_pod_wraps_around():
  assert topology.parse('v5p:2x4x8').wraps == (False, True, True)
  assert topology.parse('v5e:8x16').wraps == (False, True)


@pytest.mark.parametrize(
  'text, what',
  [
    ('v5p', 'a chip and a shape such as v5p:8x16x16'),
    ('v9:2x2', 'a chip of v4, v5e'),
    ('v5p:4x4', 'must have 3 dims'),
    ('v5e:32x16', 'largest slice, 16x16'),
    ('v5p:16x16x28', 'largest slice, 16x16x24'),
    ('h100:4x4', 'a number of GPUs'),
  ],
)
def test_an_impossible_slice_is_refused(text, what):
  with pytest.raises(ValueError, match=what):
    topology.parse(text)


def test_a_slice_of_gpus_cannot_be_compiled_for_ahead_of_time():
  with pytest.raises(ValueError, match='must be TPUs'):
    topology.devices(topology.parse('h100:8'))
