"""Vocabularies and stores are made if they are missing or outdated."""

import importlib
import json
import logging
import pathlib
import shutil
import sys

import pytest

from tasks import outdated, registry, stores

pytest.importorskip('seqio')

from moe.data.store import Store, find_stores  # noqa: E402
from moe.data.verify import verify  # noqa: E402
from moe.modalities.text import train_vocabulary  # noqa: E402

LETTERS = """from tasks import registry, text_files


def document(letter):
  return letter['text']


source = text_files.plain_text({'train': '*.txt'})
registry.add_text_task('t_letters', source, document)
"""


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """The vocabulary's directory, with stores of the built-in mixture."""
  cache_dir = tmp_path_factory.mktemp('stores')
  return stores.prepare([('builtin', None)], cache_dir, vocab_size=1000)


@pytest.fixture
def copied(prepared, tmp_path):
  """A copy of `prepared` that the test may change."""
  return shutil.copytree(prepared, tmp_path / pathlib.Path(prepared).name)


@pytest.fixture
def without_tasks(monkeypatch):
  def register_tasks(names=()):
    raise AssertionError('everything was there')

  monkeypatch.setattr(stores, 'register_tasks', register_tasks)


def test_a_mixture_is_prepared_for_training_and_validation(prepared):
  assert pathlib.Path(prepared).name == 'builtin-1000'
  for split in ('train', 'validation'):
    dirs, rates = find_stores(prepared, 'builtin', split)
    assert len(dirs) == len(rates) == 4 and min(rates) > 0
    assert not any(verify(directory) for directory in dirs)


def test_what_is_there_is_not_made_again(prepared, without_tasks):
  cache_dir = pathlib.Path(prepared).parent
  again = stores.prepare([('builtin', None)], cache_dir, vocab_size=1000)
  assert again == prepared
  by_file = stores.prepare(
    [('builtin_poems', ['train'])], cache_dir, f'{prepared}/vocabulary.model'
  )
  assert by_file == prepared


def test_only_what_is_missing_is_made(copied):
  shutil.rmtree(copied / 'builtin_poems' / 'train')
  kept = copied / 'builtin_essays/train/manifest.json'
  before = kept.stat().st_mtime_ns
  stores.prepare([('builtin', None)], copied.parent, vocab_size=1000)
  assert kept.stat().st_mtime_ns == before
  assert verify(copied / 'builtin_poems' / 'train') == []


def test_overwriting_makes_everything_again(copied):
  manifest = copied / 'builtin_poems/train/manifest.json'
  before = manifest.stat().st_ino
  stores.prepare(
    [('builtin_poems', ['train'])],
    copied.parent,
    vocabulary=copied / 'vocabulary.model',
    overwrite=True,
  )
  assert manifest.stat().st_ino != before


def test_a_store_of_another_vocabulary_is_made_again(copied):
  train_vocabulary(['白日依山盡'], 300, copied / 'vocabulary.model')
  wanted = [('builtin_poems', ['train'])]
  assert not outdated.is_prepared(str(copied), wanted)
  stores.prepare(wanted, copied.parent, copied / 'vocabulary.model')
  assert verify(copied / 'builtin_poems' / 'train') == []


def test_a_broken_store_is_not_taken_for_prepared(copied):
  (copied / 'builtin_poems/train/manifest.json').write_text('{"for')
  assert not outdated.is_prepared(str(copied), [('builtin_poems', ['train'])])


def test_a_mixture_is_outdated_when_its_tasks_change(copied, monkeypatch):
  assert outdated.is_prepared(str(copied), [('builtin', ['train'])])
  fewer = registry.MIXTURES['builtin'][1:]
  monkeypatch.setitem(registry.MIXTURES, 'builtin', fewer)
  assert not outdated.is_prepared(str(copied), [('builtin', ['train'])])


def test_a_mixture_is_outdated_when_its_declared_rates_change(
  copied, monkeypatch
):
  rates = {task: 2.0 for task in registry.MIXTURES['builtin']}
  monkeypatch.setitem(registry.RATES, 'builtin', rates)
  assert not outdated.is_prepared(str(copied), [('builtin', ['train'])])


def test_a_mixture_is_not_outdated_when_other_code_changes(copied):
  path = copied / 'builtin' / 'mixture.json'
  mixture = json.loads(path.read_text())
  path.write_text(json.dumps(mixture | {'tasks_sha256': 'of yesterday'}))
  assert outdated.is_prepared(str(copied), [('builtin', ['train'])])


@pytest.fixture
def letters(tmp_path, monkeypatch, declare):
  """Makes the stores of a task that has its own module and files."""
  monkeypatch.setenv('WUDAO_DATA', str(tmp_path / 'data'))
  (tmp_path / 'data').mkdir()
  for name in 'ab':
    text = f'白日依山盡{name}\n' * 20
    (tmp_path / 'data' / f'{name}.txt').write_text(text, encoding='utf-8')
  (tmp_path / 't_letters.py').write_text(LETTERS)
  monkeypatch.syspath_prepend(tmp_path)
  importlib.import_module('t_letters')
  stores.prepare([('t_letters', ['train'])], tmp_path / 'c', vocab_size=400)
  yield tmp_path
  del sys.modules['t_letters']


def is_prepared(tmp_path):
  directory = str(tmp_path / 'c' / 't_letters-400')
  return outdated.is_prepared(directory, [('t_letters', ['train'])], 400)


def change_a_file(path):
  (path / 'data/b.txt').write_text('黃河入海流\n' * 20, encoding='utf-8')


def add_a_file(path):
  (path / 'data/c.txt').write_text('黃河入海流\n', encoding='utf-8')


def change_the_code(path):
  with open(path / 't_letters.py', 'a') as f:
    f.write('# Another line.\n')


@pytest.mark.parametrize(
  ('change', 'named'),
  [
    (change_a_file, 'b.txt'),
    (add_a_file, '*.txt'),
    (change_the_code, 't_letters.py'),
  ],
)
def test_a_change_of_files_or_code_makes_stores_again(
  letters, caplog, change, named
):
  caplog.set_level(logging.INFO, 'tasks')
  assert is_prepared(letters)
  change(letters)
  assert not is_prepared(letters)
  wanted = [('t_letters', ['train'])]
  stores.prepare(wanted, letters / 'c', vocab_size=400)
  assert f'{named} has changed' in caplog.text
  assert 't_letters/train is made again' in caplog.text
  assert is_prepared(letters)
  store = Store(letters / 'c/t_letters-400/t_letters/train')
  assert store.manifest['records'] == (41 if change is add_a_file else 40)


def test_a_bad_line_stops_the_stores_unless_so_many_are_allowed(letters):
  with open(letters / 'data/a.txt', 'ab') as f:
    f.write(b'\xff\n')
  wanted = [('t_letters', ['train'])]
  with pytest.raises(ValueError, match='1 of 21 lines'):
    stores.prepare(wanted, letters / 'c', vocab_size=400)
  stores.prepare(wanted, letters / 'c', vocab_size=400, max_bad_fraction=1 / 21)
  assert is_prepared(letters)


def test_a_file_written_again_as_it_was_changes_nothing(letters):
  path = letters / 'data/a.txt'
  path.write_bytes(path.read_bytes())
  assert is_prepared(letters)


def test_stores_are_used_on_machines_without_their_corpus(letters):
  shutil.rmtree(letters / 'data')
  assert is_prepared(letters)


def test_a_vocabulary_from_elsewhere_is_copied_under_name_and_hash(
  prepared, tmp_path
):
  mine = shutil.copy(f'{prepared}/vocabulary.model', tmp_path / 'mine.model')
  directory = stores.prepare(
    [('builtin_couplets', ['validation'])], tmp_path / 'cache', mine
  )
  manifest = Store(f'{directory}/builtin_couplets/validation').manifest
  sha256 = manifest['vocabulary_sha256']
  assert directory == str(tmp_path / 'cache' / f'mine-{sha256[:8]}')
  assert verify(f'{directory}/builtin_couplets/validation') == []


@pytest.mark.parametrize(
  ('task', 'splits', 'options', 'message'),
  [
    ('builtin_poem', None, {'vocab_size': 500}, 'mean builtin_poems'),
    ('builtin', ['test'], {'vocab_size': 500}, "train, validation, got 'test'"),
    ('builtin', None, {}, 'vocabulary, got none'),
    ('builtin', None, {'vocabulary': 'no.model'}, 'got nothing there'),
  ],
)
def test_a_missing_task_split_or_vocabulary_is_an_error_and_leaves_no_file(
  tmp_path, task, splits, options, message
):
  with pytest.raises(ValueError, match=message):
    stores.prepare([(task, splits)], tmp_path / 'cache', **options)
  assert not (tmp_path / 'cache').exists()


def test_a_cache_directory_that_cannot_be_written_is_an_error(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match='cache directory .* must be writable'):
    stores.prepare([('builtin', None)], tmp_path / 'file', vocab_size=500)
