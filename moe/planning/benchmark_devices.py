"""Devices for benchmarks: those of this machine, or TPUs to compile for."""

import jax

from moe.scale import topology


def eight() -> list[jax.Device]:
  """The first 8 devices of this machine.

  Raises:
    ValueError: if there are fewer.
  """
  devices = jax.devices()
  if len(devices) < 8:
    raise ValueError(
      f'--compare=mesh needs 8 devices, got {len(devices)}: on CPUs set'
      ' JAX_PLATFORMS=cpu, and the command divides them.'
    )
  return devices[:8]


def v5p(shape: str) -> list:
  """Describes the devices of a v5p slice, such as '2x2x1', for the compiler.

  Raises:
    ValueError: if libtpu is not installed or refuses the shape.
  """
  try:
    import libtpu  # noqa: F401 -- This checks that libtpu is installed.
  except ImportError as error:
    raise ValueError(
      "compiling for TPUs needs the package libtpu: pip install '.[tpu]'."
    ) from error
  return topology.devices(topology.parse(f'v5p:{shape}'))
