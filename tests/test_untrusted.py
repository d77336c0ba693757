"""Nothing from strangers is unpickled, and damaged input causes no crash."""

import ast
import json
import pathlib
import random
import shutil
import time
import zlib

import numpy as np
import pytest

from launch.configs import bindings, safety
from moe.checkpoint import foreign, integrity, listing, safetensors_file
from moe.data import skips, store, text_file
from tests.checkpoint.states import save_steps

ROOT = pathlib.Path(__file__).parents[1]
# Names of modules that can run code from a file.
LOADERS = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve'}
LOADERS |= {'marshal', 'torch'}
PIECES = [b'', b'"', b'{', b'[', b'[' * 2000, b'..', b'/etc/passwd', b'-1']
PIECES += [b'1e999', b'null', b'\0', b'\xff', b'@', b'%', b'\n', b'99999999999']


def test_nothing_in_the_tree_is_unpickled():
  for folder in ('moe', 'tasks', 'launch'):
    for path in (ROOT / folder).rglob('*.py'):
      for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        found = set()
        if isinstance(node, ast.Import):
          found = {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
          found = {(node.module or '').split('.')[0]}
        elif isinstance(node, ast.keyword) and node.arg == 'allow_pickle':
          assert ast.literal_eval(node.value) is False, path
        assert not found & LOADERS, path


def damaged(content, rng):
  """The content with a few pieces cut out, doubled, replaced or inserted."""
  for _ in range(rng.randint(1, 3)):
    first = rng.randrange(len(content) + 1)
    end = min(len(content), first + rng.choice([0, 1, 1, 4, 30]))
    middle = rng.choice([*PIECES, content[first:end] * 2])
    content = content[:first] + middle + content[end:]
  return content


def metadata(workdir):
  """Name -> (content, read) of the metadata files of a checkpoint.

  `read(name, content)` reads the checkpoint with this content in the file.
  """
  save_steps(workdir / 'steps', [1])
  names = 'state/_METADATA', 'meta/metadata', integrity.NAME
  names += 'state/manifest.ocdbt', listing.LATE_METRICS
  (workdir / 'steps/1' / listing.LATE_METRICS).write_text('{"loss": 1.0}')

  def read(name, content):
    step = workdir / 'steps/1'
    before = (step / name).read_bytes()
    (step / name).write_bytes(content)
    foreign.problems(step)
    integrity.check(step)
    listing.read_meta(step)
    listing.ranking(workdir / 'steps', 'loss')
    (step / name).write_bytes(before)

  return {
    name: ((workdir / 'steps/1' / name).read_bytes(), read) for name in names
  }


def gin_file(workdir):
  """A gin file: name -> (content, read(name, content)); reading checks it."""
  path = workdir / 'run.gin'
  text = (ROOT / 'gin_configs/models/tiny.gin').read_bytes()

  def read(name, content):
    del name
    path.write_bytes(content)
    safety.check([str(path)])
    bindings.read([str(path)], [])

  return {'tiny.gin': (text, read)}


def other_files(workdir):
  """Other files: name -> (content, read(name, content))."""
  path = workdir / 'file'
  lines = '\n'.join(json.dumps({'text': t}) for t in ('白日', '依山盡'))
  manifest = {'format': store.FORMAT, 'records': 0, 'files': {}}
  manifest |= {'vocabulary_sha256': 'a', 'vocab_size': 9, 'task': 't'}

  def opened(name, content):
    path.write_bytes(content)
    if name == 'corpus.jsonl':
      text_file.read_json_lines(path)
    elif name == 'corpus.txt':
      text_file.read_texts(str(path))
    elif name == skips.NAME:
      path.replace(workdir / name)
      skips.read(workdir)
    else:
      shutil.copy(path, workdir / store.MANIFEST)
      store.Store(workdir)

  return {
    'corpus.jsonl': (lines.encode(), opened),
    'corpus.txt': ('白日\\n依山\n'.encode(), opened),
    skips.NAME: (b'[[1, 3], [5, 9]]', opened),
    store.MANIFEST: (json.dumps(manifest).encode(), opened),
  }


def store_files(workdir):
  """Files of a store, a record, a header: name -> (content, read)."""
  folder, tensors = workdir / 'store', workdir / 'a.safetensors'
  document = {'tokens': np.arange(3), 'block_ids': np.array([0, 1, 1])}
  facts = {'vocabulary_sha256': 'a', 'vocab_size': 9, 'task': 't'}
  store.write_store(folder, [document] * 4, lambda: facts)
  array = safetensors_file.ToWrite('w', 'F32', (2, 3), lambda: np.ones((2, 3)))
  safetensors_file.write(tensors, [array])

  def read_file(name, content):
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    try:
      store.Store(folder).read(range(4), lambda record, error: None)
    finally:
      (folder / name).write_bytes(before)

  def read_record(name, content):
    del name
    # A stranger can make a checksum that fits.
    sum_of_bytes = zlib.crc32(content).to_bytes(4, 'little')
    store.decode_record(sum_of_bytes + content)

  def read_tensors(name, content):
    del name
    tensors.write_bytes(content)
    safetensors_file.read_header(tensors)

  names = store.RECORDS, store.LENGTHS, store.BLOCKS
  kinds = {name: ((folder / name).read_bytes(), read_file) for name in names}
  return kinds | {
    'record': (store.encode_record(document)[4:], read_record),
    'a.safetensors': (tensors.read_bytes(), read_tensors),
  }


@pytest.mark.parametrize(
  'cases',
  [
    pytest.param(2_000, marks=pytest.mark.slow),
    pytest.param(100_000, marks=pytest.mark.nightly),
  ],
)
def test_damaged_input_is_refused_or_read_and_nothing_else(tmp_path, cases):
  kinds = metadata(tmp_path) | gin_file(tmp_path) | other_files(tmp_path)
  kinds |= store_files(tmp_path)
  rng, slowest = random.Random(cases), 0.0
  for case in range(cases):
    name = rng.choice(list(kinds))
    content, read = kinds[name]
    content = damaged(content, rng)
    begin = time.process_time()
    try:
      read(name, content)
    except (ValueError, FileNotFoundError):
      pass  # The user sees the message of such an error.
    except Exception as error:
      raise AssertionError(f'case {case}, {name}: {content!r}') from error
    slowest = max(slowest, time.process_time() - begin)
  assert slowest < 5.0
