import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.scale import compile as compile_lib
from tests.scale import layouts


def test_the_bytes_in_an_out_of_memory_error_are_read():
  message = (
    'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM,'
    ' the total memory required for HLO temporaries (2.50T) exceeds available'
    ' HBM (95.73G). HLO module: jit_f.\nSee more'
  )
  found = compile_lib._does_not_fit(RuntimeError(message))
  assert found.needed == 2.5 * 2**40
  assert found.available == pytest.approx(95.73 * 2**30)
  assert '\n' not in str(found)


def test_another_error_does_not_count_as_out_of_memory():
  assert compile_lib._does_not_fit(RuntimeError('INTERNAL: oh')) is None


def test_the_key_tells_programs_and_devices_apart():
  x = jax.ShapeDtypeStruct((4,), jnp.float32)
  devices = jax.devices()
  lower = lambda f: jax.jit(f).lower(x)
  key = compile_lib.content_key(lower(jnp.sin), devices[:2])
  assert key == compile_lib.content_key(lower(jnp.sin), devices[:2])
  assert key != compile_lib.content_key(lower(jnp.cos), devices[:2])
  assert key != compile_lib.content_key(lower(jnp.sin), devices[:4])


@pytest.mark.parametrize('name', ['XLA_FLAGS', 'LIBTPU_INIT_ARGS'])
def test_other_compiler_flags_make_another_program(name, monkeypatch):
  lowered = jax.jit(jnp.sin).lower(jax.ShapeDtypeStruct((4,), jnp.float32))
  key = lambda: compile_lib.content_key(lowered, jax.devices()[:2])
  before = key()
  monkeypatch.setenv(name, '--xla_other=true')
  assert key() != before


class Chip:
  def __init__(self, kind):
    self.device_kind, self.coords, self.id = kind, (0, 0, 0), 0


def test_a_program_made_for_described_chips_is_found_by_real_ones():
  lowered = jax.jit(jnp.sin).lower(jax.ShapeDtypeStruct((4,), jnp.float32))
  key = lambda kind: compile_lib.content_key(lowered, [Chip(kind)])
  assert key('TPU v5') == key('TPU v5p') != key('TPU v5 lite')


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
  """(program, shapes, compiled step, the same step read from the cache)."""
  _, program = layouts.built('dense_fsdp')
  shapes = program.batch_shapes
  directory = tmp_path_factory.mktemp('programs')
  first = compile_lib.compile_step(program, shapes, directory)
  again = compile_lib.compile_step(program, shapes, directory)
  return program, shapes, first, again


@pytest.mark.slow
def test_a_program_is_compiled_once_and_found_by_its_content(kept):
  _, _, first, again = kept
  assert not first.is_cached and again.is_cached
  assert first.text == again.text and 'ENTRY' in first.text
  assert first.argument_bytes == again.argument_bytes > 0


@pytest.mark.slow
def test_a_saved_program_trains_like_one_compiled_here(kept):
  program, shapes, first, _ = kept
  step = compile_lib.load(program, shapes, first.path)
  rng = np.random.default_rng(0)
  draw = lambda s: rng.integers(1, 9, s.shape).astype(s.dtype)
  batch = program.put(jax.tree.map(draw, shapes))
  _, got = step(program.init(), batch)
  _, want = program.train_step(program.init(), batch)
  assert float(got['loss'][0]) == float(want['loss'][0]) > 0


@pytest.mark.slow
def test_a_program_of_another_run_is_refused(kept):
  _, shapes, first, _ = kept
  _, other = layouts.built('dense_data')
  with pytest.raises(
    ValueError, match='compiled from this run for these devic'
  ):
    compile_lib.load(other, shapes, first.path)


def test_a_file_that_is_no_program_is_refused(tmp_path):
  path = tmp_path / 'step.bin'
  path.write_bytes(b'nothing\n')
  with pytest.raises(
    ValueError, match='must be a program that launch.plan saved'
  ):
    compile_lib.load(None, None, str(path))
