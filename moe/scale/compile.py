"""Compiles a training step ahead of time, saves it, and loads it again.

We read the text of the optimised program from XLA's dump, because
`compiled.as_text()` can fail: it does so for programs with asynchronous
collectives if libtpu is newer than jaxlib.
"""

import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable

import jax
from jax.experimental import serialize_executable

from moe import stop_signals
from moe.atomic_files import write_file
from moe.scale import topology
from moe.train.program import Program
from moe.types import Batch

# Environment variables that hold compiler flags.
_FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


class DoesNotFit(ValueError):
  """Error: the compiler says that a program does not fit in a device's memory.

  Attributes:
    needed: bytes that the program needs; 0 if the compiler does not say.
    available: bytes that a device has; 0 if the compiler does not say.
  """

  def __init__(self, message: str, needed: float, available: float):
    super().__init__(message)
    self.needed, self.available = needed, available


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled step and its measurements, from this or an earlier compilation.

  All bytes are those of one device.

  Attributes:
    key: hash of everything that determines the program, see `content_key`.
    argument_bytes: bytes of parameters, optimizer state and batch.
    temp_bytes: bytes of the step's temporaries.
    code_bytes: bytes of the program's code, which uses the same memory.
    peak_bytes: the most bytes in use at one time, the program included.
    seconds: time that the compilation took.
    flops_once: FLOPs by the compiler, which counts the body of a loop once.
    optimal_seconds: the compiler's estimate of the step's time, which also
      counts the body of a loop once.
    text: the optimised program.
    is_cached: whether the result was read from an earlier compilation.
    path: file of the executable, which `load` reads.
  """

  key: str
  argument_bytes: int
  temp_bytes: int
  code_bytes: int
  peak_bytes: int
  seconds: float
  flops_once: float
  optimal_seconds: float
  text: str
  is_cached: bool
  path: str


def versions() -> dict[str, str]:
  """Versions of the compilers, on which the compiled program depends."""
  import jaxlib

  try:
    import libtpu

    tpu = libtpu.__version__
  except ImportError:
    tpu = ''
  return {'jax': jax.__version__, 'jaxlib': jaxlib.__version__, 'libtpu': tpu}


def content_key(
  lowered: jax.stages.Lowered, devices: Iterable[jax.Device]
) -> str:
  """Hash of everything that determines a compiled step.

  This is the program before compilation, the devices, and the versions and
  flags of the compilers.
  """
  described = [
    (topology.kind_of(d.device_kind), *getattr(d, 'coords', (d.id,)))
    for d in devices
  ]
  flags = [os.environ.get(name, '') for name in _FLAGS]
  parts = [lowered.as_text(), str(described), json.dumps(versions()), *flags]
  return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:24]


def compile_step(
  program: Program, shapes: Batch, directory: str, want_program: bool = True
) -> Compiled:
  """Compiles the train step of a program, or reads an earlier compilation.

  Args:
    program: the program of a run, on devices that need not exist.
    shapes: shapes of a batch.
    directory: the cache, with one folder for each `content_key`.
    want_program: whether to save the executable too, and not only its
      measurements.

  Raises:
    DoesNotFit: if a device has too little memory.
  """
  stop_signals.listen()  # Compiling takes minutes.
  lowered = program.train_step.lower(program.abstract, shapes)
  key = content_key(lowered, program.mesh.devices.flat)
  folder = pathlib.Path(directory) / key
  facts, text = folder / 'facts.json', folder / 'program.txt.gz'
  path = folder / 'step.bin'
  if facts.exists() and (path.exists() or not want_program):
    known = json.loads(facts.read_text())
    with gzip.open(text, 'rt') as f:
      return Compiled(
        key, **known, text=f.read(), is_cached=True, path=str(path)
      )
  begin = time.monotonic()
  with tempfile.TemporaryDirectory() as dump:
    options = {'xla_dump_to': dump, 'xla_dump_hlo_as_text': True}
    try:
      compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
      raise _does_not_fit(error) or error from error
    seconds = time.monotonic() - begin
    # TPU compilers write estimates of cycles only into the text after code
    # generation.
    program_text = dumped(
      pathlib.Path(dump), '*after_codegen.txt', '*after_optimizations.txt'
    )
  known = _facts(compiled, seconds)
  folder.mkdir(parents=True, exist_ok=True)
  if want_program:
    write_file(path, _packed(compiled, key))
  write_file(text, gzip.compress(program_text.encode(), 6))
  write_file(facts, json.dumps(known, indent=2).encode())
  return Compiled(
    key, **known, text=program_text, is_cached=False, path=str(path)
  )


def _facts(compiled: jax.stages.Compiled, seconds: float) -> dict[str, float]:
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  arguments = memory.argument_size_in_bytes
  return {
    'argument_bytes': arguments,
    'temp_bytes': memory.temp_size_in_bytes,
    'code_bytes': memory.generated_code_size_in_bytes,
    # The peak of a CPU program does not include temporaries.
    'peak_bytes': max(
      memory.peak_memory_in_bytes, arguments, memory.temp_size_in_bytes
    ),
    'seconds': seconds,
    'flops_once': cost.get('flops', 0.0),
    'optimal_seconds': cost.get('optimal_seconds', 0.0),
  }


def dumped(folder: pathlib.Path, *patterns: str) -> str:
  """Reads a text about the program from XLA's dump.

  Args:
    folder: folder of the dump, `xla_dump_to` of the compilation.
    *patterns: glob patterns of file names. The first pattern that matches a
      file is used.

  Raises:
    ValueError: if no file matches.
  """
  for pattern in patterns:
    # A compilation dumps several modules. The largest one is the step.
    found = sorted(folder.glob(pattern), key=lambda p: p.stat().st_size)
    if found:
      return found[-1].read_text()
  raise ValueError(
    f'XLA must write the program into {folder} (xla_dump_to), but did not:'
    ' remove dump options from XLA_FLAGS.'
  )


def _does_not_fit(error: Exception) -> DoesNotFit | None:
  message = str(error)
  if 'RESOURCE_EXHAUSTED' not in message:
    return None
  found = re.search(r'\(([\d.]+)([KMGT])\).*?\(([\d.]+)([KMGT])\)', message)
  found = found or re.search(
    r'Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm', message
  )
  if not found:
    return DoesNotFit(message.split('\n')[0], 0.0, 0.0)
  needed = float(found[1]) * _UNITS[found[2]]
  available = float(found[3]) * _UNITS[found[4]]
  return DoesNotFit(message.split('\n')[0], needed, available)


def _packed(compiled: jax.stages.Compiled, key: str) -> bytes:
  """The bytes of an executable's file: a JSON line, then the executable."""
  program, _, _ = serialize_executable.serialize(compiled)
  return json.dumps({'key': key, **versions()}).encode() + b'\n' + program


def load(program: Program, shapes: Batch, path: str) -> Callable:
  """Loads a step that `compile_step` saved, ready to run on real devices.

  Args:
    program: the program of the run, whose mesh has real devices.
    shapes: shapes of a batch.
    path: a file that `compile_step` wrote.

  Returns:
    (state, batch) -> (state, metrics).

  Raises:
    ValueError: if the file cannot be read, or was compiled from another
      program, for other devices, or with other versions or flags.
  """
  try:
    header, packed = pathlib.Path(path).read_bytes().split(b'\n', 1)
    header = json.loads(header)
  except (OSError, ValueError) as error:
    raise ValueError(
      f'--compiled={path} must be a program that launch.plan saved: {error}.'
    ) from error
  lowered = program.train_step.lower(program.abstract, shapes)
  devices = list(program.mesh.devices.flat)
  if content_key(lowered, devices) != header['key']:
    now = {'key': content_key(lowered, devices), **versions()}
    different = [f'{k} {header[k]} there, {v} here' for k, v in now.items()
                 if header[k] != v]  # fmt: skip
    raise ValueError(
      f'--compiled={path} must be compiled from this run for these devices, but'
      f' it differs ({"; ".join(different)}). Run launch.plan again with the'
      ' same gin file, topology, versions, XLA_FLAGS and LIBTPU_INIT_ARGS.'
    )
  in_tree = jax.tree.structure(((program.abstract, shapes), {}))
  out_tree = jax.tree.structure(lowered.out_info)
  return serialize_executable.deserialize_and_load(
    packed, in_tree, out_tree, execution_devices=devices
  )
