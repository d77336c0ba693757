"""A written safetensors file is read back, and a malformed one is refused."""

import json
import random

import numpy as np
import pytest

from moe.checkpoint import safetensors_file as lib
from moe.checkpoint.safetensors_file import ToWrite

# The arrays hold 12 float32 and 3 bfloat16 numbers.
ARRAYS = {'b': ('BF16', (3,)), 'a': ('F32', (3, 4))}


def write(path):
  arrays = [
    ToWrite(n, dtype, shape, lambda s=shape: np.arange(np.prod(s)).reshape(s))
    for n, (dtype, shape) in ARRAYS.items()
  ]
  lib.write(path, arrays)
  return path


@pytest.fixture
def path(tmp_path):
  return write(tmp_path / 'sound.safetensors')


def with_header(path, header, content=b''):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + content)
  return path


def entry(dtype='F32', shape=(2,), offsets=(0, 8)):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}


def test_what_is_written_is_read(path):
  entries = lib.read_header(path)
  assert list(entries) == ['a', 'b']  # The wider dtype comes first.
  for name, (_, shape) in ARRAYS.items():
    array = lib.read_array(path, entries[name])
    wanted = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(array.astype(np.float32), wanted)
  assert entries['a'].start % 8 == 0


def test_the_same_arrays_give_the_same_bytes(path, tmp_path):
  assert write(tmp_path / 'again').read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
  ('header', 'message'),
  [
    ({'a': entry(offsets=(0, 4))}, 'shape and offsets differ'),
    ({'a': entry(), 'b': entry(offsets=(4, 12))}, 'a gap or an overlap'),
    ({'a': entry(offsets=(8, 16))}, 'a gap or an overlap'),
    ({'a': entry(shape=(4,), offsets=(0, 16))}, 'by its header'),
    ({'a': entry(shape=(-2,))}, 'impossible shape'),
    ({'a': entry(shape=(True, 2))}, 'impossible shape'),
    ({'a': entry(shape=(1,) * 9, offsets=(0, 4))}, 'impossible shape'),
    ({'a': entry(shape=(2**62, 2**62))}, 'shape and offsets differ'),
    ({'a': entry(offsets=(0, -8))}, 'impossible offsets'),
    ({'a': entry(dtype='C64')}, 'unknown dtype'),
    ({'a': entry(dtype=['F32'])}, 'unknown dtype'),
    ({'a': [1]}, 'without dtype'),
    ({'__metadata__': {'a': 1}, 'a': entry()}, 'not map text to text'),
    (b'[1]', 'does not begin with {'),
    (b'{"a":' + b'[' * 50_000, 'must be a sound safetensors file'),
    (b'{"a": {}, "a": {}}', 'occurs twice in its header'),
    (b'{"a": \xff}', 'must be a sound safetensors file'),
    (b'{"a": 1' + b'0' * 5000 + b'}', 'must be a sound safetensors file'),
  ],
)
def test_an_unsound_header_is_refused(tmp_path, header, message):
  file = with_header(tmp_path / 'f', header, bytes(8))
  with pytest.raises(ValueError, match=message):
    lib.read_header(file)


def test_a_header_longer_than_the_limit_is_not_read(tmp_path):
  file = tmp_path / 'f'
  file.write_bytes((2**40).to_bytes(8, 'little') + b'{}')
  with pytest.raises(ValueError, match='a header of 1099511627776 bytes'):
    lib.read_header(file)


def test_a_file_that_ends_too_early_is_refused(path):
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match='by its header'):
    lib.read_header(path)


def test_what_is_no_regular_file_is_refused():
  with pytest.raises(ValueError, match='no regular file'):
    lib.read_header('/dev/null')


def test_an_array_of_whole_numbers_is_no_weight(tmp_path):
  header = {'a': entry(dtype='I32')}
  file = with_header(tmp_path / 'f', header, bytes(8))
  with pytest.raises(ValueError, match='has an array of I32'):
    lib.read_array(file, lib.read_header(file)['a'])


def mutated(content: bytes, source: random.Random) -> bytes:
  """`content` with one to four random changes, most of them in the header."""
  content = bytearray(content)
  for _ in range(source.randint(1, 4)):
    place = source.randrange(len(content))
    kind = source.randrange(5)
    if kind == 0:
      content[place] = source.randrange(256)
    elif kind == 1:
      del content[place : place + source.randint(1, 9)]
    elif kind == 2:
      content[place:place] = source.choice(
        [b'9', b'-', b'"', b'{', b'[', b'e9', b'null', b'\\u0000', b'\x00']
      )
    elif kind == 3:
      digits = [i for i, byte in enumerate(content) if 48 <= byte <= 57]
      content[source.choice(digits or [0])] = source.randrange(48, 58)
    else:
      other = source.randrange(len(content))
      content[place : place + 4] = content[other : other + 4]
    content = content or bytearray(b'0')
  return bytes(content)


def check_mutated(path, num, seed):
  """Checks that a mutated file is refused or has its arrays inside."""
  sound = path.read_bytes()
  source = random.Random(seed)
  refused = 0
  for _ in range(num):
    content = mutated(sound, source)
    path.write_bytes(content)
    try:
      entries = lib.read_header(path)
    except ValueError:
      refused += 1
      continue
    assert sum(e.num_bytes for e in entries.values()) < len(content)
    for e in entries.values():
      assert 8 <= e.start <= e.start + e.num_bytes <= len(content)
      if e.dtype in lib.DTYPES:
        assert lib.read_array(path, e).shape == e.shape
  assert refused > num / 2


def test_2000_mutated_files_are_refused_or_read_within_their_bounds(path):
  check_mutated(path, 2000, seed=0)


@pytest.mark.nightly
def test_20000_mutated_files_are_refused_or_read_within_their_bounds(path):
  check_mutated(path, 20_000, seed=1)
