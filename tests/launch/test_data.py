"""Tests the subcommands of launch.data."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from launch import data
from moe.modalities.text import Vocabulary
from tasks import modules, registry, text_files

ROOT = pathlib.Path(__file__).parents[2]
LETTERS = """from tasks import modules, registry, text_files
source = text_files.plain_text({'train': 't_letters.txt'})
registry.add_text_task('t_letters', source, lambda r: r['text'])
"""
LIGHT = """import sys
from launch import data
code = data.main(sys.argv[1:])
assert not {'tensorflow', 'seqio', 'jax'} & set(sys.modules)
sys.exit(code)
"""


@pytest.fixture
def run(capsys):
  def run_main(*argv):
    code = data.main([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    return code, out, err

  return run_main


@pytest.fixture(scope='module')
def cached(tmp_path_factory):
  """A cache directory that holds the stores of the built-in couplets."""
  pytest.importorskip('seqio')
  cache_dir = tmp_path_factory.mktemp('cached')
  code = data.main(
    [
      'cache',
      'builtin_couplets',
      '--vocab_size=800',
      f'--cache_dir={cache_dir}',
    ]
  )
  assert code == 0
  return cache_dir


def test_a_vocabulary_is_trained_on_a_text_file(run, tmp_path):
  text = tmp_path / 'texts.txt'
  text.write_text('白日依山盡\\n黃河入海流\n欲窮千里目\n', encoding='utf-8')
  output = tmp_path / 'v' / 'mine.model'
  code, out, _ = run(
    'vocabulary', f'--text_file={text}', '--size=300', f'--output={output}'
  )
  assert code == 0
  vocabulary = Vocabulary(output)
  assert f'{vocabulary.size} pieces' in out and vocabulary.sha256 in out
  assert not vocabulary.is_byte(vocabulary.encode('黃')[0])


def test_a_text_file_that_is_not_utf8_is_refused(run, tmp_path):
  text = tmp_path / 'texts.txt'
  text.write_bytes('好\n'.encode() + '白日'.encode('gbk'))
  code, _, err = run(
    'vocabulary', f'--text_file={text}', '--size=300', '--output=none.model'
  )
  assert code == 2
  assert err.startswith('error: ') and 'texts.txt:2' in err


def test_caching_prints_the_vocabulary_directory(run, cached):
  code, out, _ = run(
    'cache', 'builtin_couplets', '--vocab_size=800', f'--cache_dir={cached}'
  )
  assert code == 0
  assert out == f'{cached}/builtin_couplets-800\n'
  assert (pathlib.Path(out.strip()) / 'vocabulary.model').is_file()


def test_two_tasks_are_cached_with_one_vocabulary(run, cached):
  code, out, _ = run(
    'cache',
    'builtin_couplets',
    'builtin_poems',
    '--vocab_size=800',
    f'--cache_dir={cached}',
    '--split=train',
  )
  assert code == 0
  assert (pathlib.Path(out.strip()) / 'builtin_poems' / 'train').is_dir()


def test_sound_stores_are_verified_by_task_and_by_directory(run, cached):
  for what in ('builtin_couplets', cached):
    code, out, _ = run('verify', what, f'--cache_dir={cached}')
    assert code == 0
    assert out.count('sound   ') >= 2 and 'UNSOUND' not in out


def test_all_stores_of_the_cache_are_verified_unless_one_is_named(run, cached):
  code, out, _ = run('verify', f'--cache_dir={cached}')
  assert code == 0 and out.count('sound   ') >= 2
  code, _, err = run('verify', f'--cache_dir={cached}/empty')
  assert code == 2 and 'launch.data cache`' in err


def test_a_split_is_named_behind_its_task(run, cached):
  argv = 'cache', '--vocab_size=800', f'--cache_dir={cached}'
  both = 'builtin_couplets/train', 'builtin_couplets/validation'
  code, out, _ = run(*argv, *both)
  assert code == 0 and out == f'{cached}/builtin_couplets-800\n'
  code, _, err = run(*argv, 'builtin_couplets/train', 'builtin_poems/tset')
  assert code == 2 and "got 'tset'" in err


def test_a_damaged_store_is_found(run, cached, tmp_path):
  copy = shutil.copytree(cached, tmp_path / 'copy')
  lengths = copy / 'builtin_couplets-800/builtin_couplets/train/lengths.npy'
  lengths.write_bytes(lengths.read_bytes()[:-4] + b'\x09\0\0\0')
  code, out, _ = run('verify', copy)
  assert code == 1
  assert 'UNSOUND' in out and 'lengths.npy must have SHA-256' in out


def test_documents_are_inspected(run, cached):
  code, out, err = run(
    'inspect',
    'builtin_couplets',
    '--split=validation',
    '--num=1',
    f'--vocabulary={cached}/builtin_couplets-800/vocabulary.model',
  )
  assert code == 0
  assert out.count('builtin_couplets/validation 0') == 1
  for measure in ('characters per token', 'unknown tokens', 'single bytes'):
    assert measure in out
  assert '█' in out


def test_every_task_and_mixture_is_listed(run):
  code, out, _ = run('list')
  assert code == 0
  for name in ('builtin_couplets', 'poems_shi', 'zh_mix'):
    assert name in out


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['cache', 'builtin_couplet', '--vocab_size=800'], 'builtin_couplets'),
    (['cache', 'builtin', '--split=tset', '--vocab_size=800'], "got 'tset'"),
    (['cache', 'builtin', '--vocabulary=none.model'], 'got nothing there'),
    (['inspect', 'builtin_couplet'], 'builtin_couplets'),
    (['inspect', 'builtin', '--split=tset'], "got 'tset'"),
    (['vocabulary', '--task=builtn', '--size=9', '--output=v'], 'builtin'),
    (['verify', 'builtin_couplet'], 'did you mean builtin_couplets'),
  ],
)
def test_a_mistake_is_one_sentence_and_code_2(run, cached, argv, message):
  if argv[0] in ('cache', 'verify'):
    argv = [*argv, f'--cache_dir={cached}']
  code, out, err = run(*argv)
  assert code == 2 and not out
  assert err.count('\n') == 1 and err.startswith('error: ') and message in err


def test_a_missing_corpus_is_an_error_before_any_work(
  run, tmp_path, monkeypatch
):
  pytest.importorskip('seqio')
  source = text_files.plain_text({'train': tmp_path / 'no.txt'})
  modules.load()
  monkeypatch.setattr(registry, 'TASKS', dict(registry.TASKS))
  registry.add_text_task('t_nowhere', source, lambda record: record['text'])
  code, _, err = run(
    'cache', 't_nowhere', '--vocab_size=800', f'--cache_dir={tmp_path}/c'
  )
  assert code == 2
  assert err.count('\n') == 1 and 'no.txt must exist' in err
  assert not (tmp_path / 'c').exists()


def light(*argv):
  """Runs launch.data without TensorFlow; returns (code, output, errors)."""
  done = subprocess.run(
    [sys.executable, '-c', LIGHT, *map(str, argv)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  return done.returncode, done.stdout, done.stderr


@pytest.fixture
def letters(tmp_path, monkeypatch):
  """The path of a task module outside the project; its text file exists."""
  monkeypatch.setenv('WUDAO_DATA', str(tmp_path / 'data'))
  (tmp_path / 'data').mkdir()
  text = '白日依山盡\n黃河入海流\n' * 20
  (tmp_path / 'data/t_letters.txt').write_text(text, encoding='utf-8')
  path = tmp_path / 'mine' / 't_letters.py'
  path.parent.mkdir()
  path.write_text(LETTERS)
  return path


def test_tasks_of_a_user_are_listed_without_importing_tensorflow(letters):
  code, out, err = light('list', f'--task_module={letters}')
  assert code == 0, err
  assert 't_letters' in out and 'builtin_poems' in out


@pytest.mark.parametrize(
  'argv',
  [
    ('inspect', 't_leters'),
    ('vocabulary', '--task=t_leters', '--size=9', '--output=v'),
    ('cache', 't_leters', '--vocab_size=9', '--cache_dir=none'),
  ],
)
def test_a_misspelt_task_is_an_error_without_importing_tensorflow(
  letters, argv
):
  code, _, err = light(*argv, f'--task_module={letters}')
  assert code == 2 and 'did you mean t_letters' in err
  assert err.count('\n') == 1


def test_every_verb_takes_a_task_module_outside_the_project(
  run, forgotten_modules, letters, tmp_path
):
  pytest.importorskip('seqio')

  def verb(*argv):
    code, out, err = run(*argv, f'--task_module={letters}')
    assert code == 0, err
    return out, err

  cache = f'--cache_dir={tmp_path}/c'
  verb('cache', 't_letters', '--vocab_size=290', cache)
  verb('vocabulary', '--task=t_letters', '--size=290', f'--output={tmp_path}/v')
  shown = verb('inspect', 't_letters', f'--vocabulary={tmp_path}/v')[0]
  assert '白日依山盡' in shown
  assert 'sound ' in verb('verify', 't_letters', cache)[0]
  letters.write_text(LETTERS + '# changed\n')
  _, err = verb('cache', 't_letters', '--vocab_size=290', cache)
  assert f'made again: {letters} has changed' in err
