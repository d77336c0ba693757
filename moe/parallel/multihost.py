"""Divides batches over processes, which run one program on their devices."""

import contextlib
import functools
import json
import math
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moe.types import Array, Batch


def _parts(sharding: NamedSharding) -> tuple[int, list[int]]:
  """Returns (number of parts of the rows, indices of this process's parts)."""
  names = sharding.spec[0] if len(sharding.spec) else None
  names = (names,) if isinstance(names, str) else names or ()
  num_parts = math.prod(sharding.mesh.shape[a] for a in names)
  # Other dims may be divided, too. Their sizes do not matter here, but must be
  # divisible by the number of parts. The number of devices is always divisible.
  others = (sharding.mesh.size,) * (len(sharding.spec) - 1)
  indices = sharding.addressable_devices_indices_map((num_parts, *others))
  return num_parts, sorted({rows.start or 0 for rows, *_ in indices.values()})


@contextlib.contextmanager
def sharing_sigterm() -> Iterator[None]:
  """Lets JAX handle SIGTERM in the block, and tell all processes of it.

  In the block all processes can call `reached_preemption_sync_point` of JAX.
  JAX can start its preemption service only once in a process.
  """
  # JAX starts the service in `initialize` or not at all. So we call the
  # function that `initialize` would call.
  from jax._src import distributed

  before = signal.getsignal(signal.SIGTERM)
  if distributed.global_state.preemption_sync_manager is None:
    jax.config.update('jax_enable_preemption_service', True)
    distributed.global_state.initialize_preemption_sync_manager()
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def own_rows(sharding: NamedSharding, num_rows: int) -> np.ndarray:
  """Returns the numbers of the rows on the devices of this process.

  Args:
    sharding: sharding of an array of the batch, whose first dim counts rows.
    num_rows: number of rows of the whole batch; the sharding must divide it.

  Returns:
    int64 row numbers of the whole batch, ascending; there may be gaps.
  """
  num_parts, own = _parts(sharding)
  return np.arange(num_rows).reshape(num_parts, -1)[own].reshape(-1)


def put_rows(rows: np.ndarray, sharding: NamedSharding) -> Array:
  """Makes the array of a whole batch from the rows of each process.

  Args:
    rows: the rows that `own_rows` lists, in this order, with all columns.
    sharding: sharding of the whole array.
  """
  num_parts, own = _parts(sharding)
  assert len(rows) % len(own) == 0, 'a part of the batch lacks rows'
  size = len(rows) // len(own)
  begins = {part * size: i * size for i, part in enumerate(own)}

  def held(index: tuple[slice, ...]) -> np.ndarray:
    begin = begins[index[0].start or 0]
    return rows[(slice(begin, begin + size), *index[1:])]

  shape = (num_parts * size, *rows.shape[1:])
  return jax.make_array_from_callback(shape, sharding, held)


def whole(array: Array) -> np.ndarray:
  """Fetches an array of which other processes may hold parts.

  All processes must call this, and each of them gets the whole array.
  """
  if jax.process_count() == 1 or array.is_fully_addressable:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def gathered(entries: list[Any]) -> list[Any]:
  """The lists of all processes, joined in their order; all must call this.

  Args:
    entries: the list of this process, ready for JSON.
  """
  if jax.process_count() == 1:
    return entries
  text = np.frombuffer(json.dumps(entries).encode(), np.uint8)
  share = multihost_utils.process_allgather
  sizes = share(np.array(text.size, np.int32)).tolist()
  # The arrays of all processes must have one shape.
  padded = np.zeros(max(sizes), np.uint8)
  padded[: text.size] = text
  texts = zip(share(padded), sizes, strict=True)
  return [e for text, size in texts for e in json.loads(text[:size].tobytes())]


def total(
  count: Callable[[Batch], int], batch: Batch, sharding: NamedSharding
) -> int | Array:
  """The sum of `count` over a whole batch; all processes must call this.

  With several processes the result is an array that the devices compute later,
  so that no process waits here.

  Args:
    count: rows of a batch -> the number for them, such as the number of tokens.
    batch: the rows of this process.
    sharding: sharding of an array of the batch.
  """
  if jax.process_count() == 1:
    return count(batch)
  _, own = _parts(sharding)
  # Two processes may have different columns of the same rows. So each part of
  # the rows is counted separately, and the sum contains each part once.
  numbers = [
    count(jax.tree.map(lambda a, i=i: np.split(a, len(own))[i], batch))
    for i in range(len(own))
  ]
  rows = NamedSharding(sharding.mesh, P(*sharding.spec[:1]))
  return _sum(sharding.mesh)(put_rows(np.array(numbers, np.int32), rows))


@functools.cache
def _sum(mesh: Mesh) -> Callable[[Array], Array]:
  return jax.jit(lambda a: a.sum(), out_shardings=NamedSharding(mesh, P()))
