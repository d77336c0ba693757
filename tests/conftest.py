"""Gives every test eight CPU devices and strict dtype promotion."""

import importlib.metadata
import os
import pathlib
import signal

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# If a shell starts the tests in the background, they ignore Ctrl-C, and under
# nohup they ignore SIGHUP. The commands under test would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Most tests spend their time compiling, and XLA's older code generator compiles
# twice as fast. An unknown flag would end the process, so we set it only for
# versions of jax that know it, and not for child processes or the TPU compiler.
FLAG = '--xla_cpu_use_fusion_emitters=false'
IS_QUICK = 'XLA_FLAGS' not in os.environ and importlib.metadata.version(
  'jaxlib'
).startswith('0.10.')
if IS_QUICK:
  os.environ['XLA_FLAGS'] = FLAG

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
if IS_QUICK:
  jax.jit(lambda: 0)()  # XLA reads the flags in the first compilation.
  del os.environ['XLA_FLAGS']


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  """Turns most optimisations off, except in tests marked `optimized`.

  Tests compile much and compute little.
  """
  is_optimized = item.get_closest_marker('optimized') is not None
  jax.config.update('jax_disable_most_optimizations', not is_optimized)


@pytest.fixture
def key():
  return jax.random.key(0)


LINES = [
  '春眠不覺曉，處處聞啼鳥。',
  '夜來風雨聲，花落知多少。',
  '白日依山盡',
  '其 一',
]
SIZES = {
  'D_MODEL': 16,
  'NUM_LAYERS': 1,
  'NUM_HEADS': 2,
  'NUM_KV_HEADS': 1,
  'HEAD_DIM': 8,
  'D_FF': 16,
  'NUM_EXPERTS': 2,
  'TOP_K': 2,
  'EXPERT_D_FF': 8,
  'VOCAB_SIZE': 320,
  'SEQUENCE_LENGTH': 64,
  'TRAIN_STEPS': 200,
  'LEARNING_RATE': 0.1,
}


def write_run(
  directory: pathlib.Path, seed: int = 0, scale: float = 1.0, **macros
) -> pathlib.Path:
  """Writes a work directory with random parameters as step 7."""
  from launch.configs import configuration
  from moe.checkpoint import save
  from moe.modalities.text import train_vocabulary
  from moe.models.functional import Functional
  from moe.objectives import language

  directory.mkdir()
  vocabulary = train_vocabulary(
    LINES, 320, directory / 'vocabulary.model', model_type='char'
  )
  config = configuration.read(
    [
      'models/tiny.gin',
      'parallel/data.gin',
      'tasks/builtin.gin',
      'runs/train.gin',
    ],
    [f'{name}={value}' for name, value in (SIZES | macros).items()],
  )
  (directory / 'config.gin').write_text(config.text)
  functional = Functional(config.run.model)
  shapes = language.batch_shapes(1, 8)
  init = jax.jit(lambda key: functional.init(key, shapes)[:2])
  params, state = init(jax.random.key(seed))
  params = jax.tree.map(lambda x: scale * x, params)
  checkpointer = save.Checkpointer(directory / 'checkpoints')
  meta = {'vocabulary_sha256': vocabulary.sha256}
  checkpointer.save(7, {'params': params, 'state': state}, meta)
  checkpointer.close()
  return directory


@pytest.fixture(scope='session', autouse=True)
def cache_dir(tmp_path_factory):
  """An empty cache directory, so that tests do not use the user's."""
  path = tmp_path_factory.mktemp('cache')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('WUDAO_CACHE', str(path))
    yield path


@pytest.fixture(scope='session')
def run_directory(tmp_path_factory):
  """A run with random parameters."""
  return write_run(tmp_path_factory.mktemp('runs') / 'random')


@pytest.fixture(scope='session')
def ahead_directory(tmp_path_factory):
  """The run of `run_directory`, with a block that predicts two tokens ahead."""
  directory = tmp_path_factory.mktemp('runs') / 'ahead'
  return write_run(directory, PREDICTS_AHEAD=True)


@pytest.fixture(scope='session')
def uniform_directory(tmp_path_factory):
  """A run of another size that gives all 320 tokens the same probability."""
  directory = tmp_path_factory.mktemp('runs') / 'uniform'
  return write_run(directory, scale=0.0, D_FF=32)
