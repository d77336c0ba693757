"""Tests the scorecards of tiny untrained runs, on a few made-up items."""

import functools
import gzip
import json
import lzma
import math
import pathlib
import shutil

import numpy as np
import pytest

from launch import scorecard
from moe.data.store import write_store
from moe.evaluate import aligned, benchmarks, reading
from moe.modalities.text import Vocabulary
from moe.report import scorecard_page

ROWS = {
  'lambada_openai': [
    {'id': 'a', 'text': '春眠 不覺 曉'},
    {'id': 'b', 'text': '夜來 風雨 聲'},
  ],
  'wsc273': [
    {
      'id': 'c',
      'sentence': '花落 [MASK] 多少',
      'candidates': ['花', '落'],
      'label': 0,
      'schema': 0,
    }
  ],
  'xcopa_zh': [
    {
      'premise': '白日依山盡。',
      'choice1': '春眠',
      'choice2': '風雨聲',
      'question': 'cause',
      'label': 1,
    }
  ]
  * 2,
}
PAIR = {'en': '12345', 'zh_hant': '春眠不覺曉，處處聞啼鳥。夜來風雨聲'}
OPENERS = {'.xz': lzma.open, '.gz': gzip.open}


def write_rows(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  with OPENERS[path.suffix](path, 'wt', encoding='utf-8') as f:
    f.writelines(json.dumps(row) + '\n' for row in rows)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A data folder with a few items. Files of other benchmarks are missing."""
  folder = tmp_path_factory.mktemp('data')
  files = {one.name: one.file for one in benchmarks.BENCHMARKS}
  for name, rows in ROWS.items():
    write_rows(folder / files[name], rows)
  qa = {'question': '何', 'answers': [['春', 0]]}
  drcd = next(one for one in reading.READINGS if one.name == 'drcd')
  write_rows(folder / drcd.file, [{'context': '春眠', 'qas': [qa]}])
  pud = next(one for one in aligned.SETS if one.name == 'PUD')
  write_rows(folder / pud.file, [PAIR] * 3)
  return folder


@pytest.fixture(scope='module')
def stored(uniform_directory, tmp_path_factory):
  """A copy of a uniform run, with token stores of two documents."""
  folder = tmp_path_factory.mktemp('scored')
  directory = folder / 'run'
  shutil.copytree(uniform_directory, directory)
  vocabulary = Vocabulary(directory / 'vocabulary.model')
  made = folder / 'cache'
  for split in ('train', 'validation'):
    texts = ['春眠不覺曉，處處聞啼鳥。夜來風雨聲', '白日依山盡']
    records = [
      {
        'tokens': np.array([*vocabulary.encode(text), vocabulary.eos]),
        'num_chars': np.int64(len(text)),
        'num_bytes': np.int64(len(text.encode())),
      }
      for text in texts
    ]
    manifest = {
      'vocabulary_sha256': vocabulary.sha256,
      'task': 'builtin',
      'source': 'made up',
      'counts': {'chars': sum(map(len, texts))},
    }
    write_store(
      made / 'builtin' / split, records, functools.partial(dict, manifest)
    )
  return directory, made


def run_main(capsys, *flags):
  code = scorecard.main([*map(str, flags)])
  out, err = capsys.readouterr()
  return code, out, err


def card_of(capsys, directory, data, *flags):
  code, out, err = run_main(
    capsys, f'--checkpoint={directory}', f'--data={data}', '--json', *flags
  )
  assert code == 0, err
  return json.loads(out), err


@pytest.fixture
def directory(stored, monkeypatch):
  directory, made = stored
  monkeypatch.setattr(
    scorecard.token_stores, 'prepare', lambda *args, **kwargs: str(made)
  )
  return directory


def entry(card, kind, name):
  return next(one for one in card[kind] if one['name'] == name)


@pytest.mark.slow
def test_a_uniform_model_has_the_numbers_worked_out_by_hand(
  capsys, directory, data
):
  card, _ = card_of(capsys, directory, data)
  # The last words are ' 曉' and ' 聲'. Each has 2 tokens of probability 1/320.
  lambada = entry(card, 'benchmarks', 'lambada_openai')
  accuracy, perplexity, bits = lambada['metrics']
  assert accuracy['value'] == 0
  assert perplexity['value'] == pytest.approx(320**2, rel=1e-4)
  assert bits['value'] == pytest.approx(math.log2(320), rel=1e-4)
  # All tokens have the same likelihood. So by total likelihood the shorter
  # answer wins, which is the wrong one. Each answer also has a token for the
  # space before it, but the space does not count as a character. So per
  # character the longer answer wins.
  xcopa = entry(card, 'benchmarks', 'xcopa_zh')
  assert [one['value'] for one in xcopa['metrics']] == [0, 1, 1]
  assert entry(card, 'readings', 'drcd')['n'] == 1
  # The English sentence has 6 tokens: 5 digits, each a byte token, and an end
  # mark. The Chinese sentence has 18: 17 characters and an end mark.
  english, chinese = entry(card, 'languages', 'PUD')['languages']
  assert english['score']['value'] == pytest.approx(
    6 * math.log2(320) / 5, rel=1e-4
  )
  assert chinese['score']['value'] == pytest.approx(
    18 * math.log2(320) / 5, rel=1e-4
  )
  assert chinese['difference']['value'] == pytest.approx(
    12 * math.log2(320) / 5, rel=1e-4
  )
  # The documents have 22 characters and 2 end marks.
  loss = card['loss']['scores'][0]
  assert loss['value'] == pytest.approx(24 * math.log2(320) / 22, rel=1e-4)
  names = [one['name'] for one in card['loss']['scores']]
  assert {'trigram, characters', 'gzip -9'} <= set(names)


@pytest.mark.slow
def test_a_missing_set_is_skipped_with_its_reason(capsys, directory, data):
  card, _ = card_of(capsys, directory, data)
  skipped = entry(card, 'benchmarks', 'winogrande')['skipped']
  assert 'winogrande_dev.jsonl.gz is missing' in skipped
  code, out, _ = run_main(capsys, f'--checkpoint={directory}', f'--data={data}')
  assert code == 0
  assert skipped in out


@pytest.mark.slow
def test_the_second_run_reads_the_first_until_the_data_change(
  capsys, directory, data, tmp_path, monkeypatch
):
  first, _ = card_of(capsys, directory, data)
  again, err = card_of(capsys, directory, data)
  assert 'read from' in err
  assert again == first
  shutil.copytree(data, tmp_path / 'data')
  changed = entry({'sets': reading_files()}, 'sets', 'lambada_openai')['file']
  write_rows(tmp_path / 'data' / changed, ROWS['lambada_openai'][:1])
  card, err = card_of(capsys, directory, tmp_path / 'data')
  assert 'read from' not in err
  assert entry(card, 'benchmarks', 'lambada_openai')['n'] == 1


def reading_files():
  return [{'name': one.name, 'file': one.file} for one in benchmarks.BENCHMARKS]


@pytest.mark.slow
def test_a_checkpoint_against_itself_differs_by_nothing(
  capsys, directory, data, tmp_path
):
  page = tmp_path / 'card.html'
  card, _ = card_of(
    capsys, directory, data, f'--against={directory}', f'--html={page}'
  )
  assert {one['value'] for one in card['differences']} == {0.0}
  assert {one['name'] for one in card['differences']} >= {
    'wsc273: acc',
    'PUD: Traditional Chinese',
    'builtin: held-out loss',
  }
  assert f'--against={directory}' in card['differences'][0]['command']
  text = page.read_text(encoding='utf-8')
  for question, _, anchor in scorecard_page._questions(card):
    assert question in text
    assert f'id="{anchor}"' in text
  assert text.count('<svg') == 3
  assert 'src="http' not in text and '<link' not in text


def test_a_missing_checkpoint_is_one_sentence(capsys, tmp_path):
  code, _, err = run_main(
    capsys, f'--checkpoint={tmp_path}', f'--data={pathlib.Path(tmp_path)}'
  )
  assert code == 2
  assert 'must be the directory of a run' in err
