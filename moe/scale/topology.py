"""Chips as facts with their source."""

# Dense bfloat16 FLOP/s of one JAX device, by `device_kind`. TPUs: the system
# architecture pages of https://cloud.google.com/tpu/docs (v4 275, v5e 197,
# v5p 459, v6e 918, tpu7x 2,307 TFLOP/s a chip of two devices). GPUs: NVIDIA's
# data sheets, without sparsity (A100 312, H100 SXM and H200 989, B200 2,250
# TFLOP/s).
PEAK_BFLOAT16 = {
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5p': 459e12,
  'TPU v5': 459e12,
  'TPU v6 lite': 918e12,
  'TPU7x': 1153.5e12,
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H200': 989e12,
  'NVIDIA B200': 2250e12,
}


def peak_flops(device_kind: str) -> float | None:
  """Peak bfloat16 FLOP/s of a device; None where unknown, as on CPUs."""
  return PEAK_BFLOAT16.get(device_kind)
