"""Makes tiny prepared files for all public corpora, with the real names."""

import gzip
import json
import lzma

import pytest

from tasks import modules, registry

# Enough records for `splits.by_hash` to put some into each split.
NUM_RECORDS = 60


def verse(i):
  return {
    'id': f'v{i}',
    'dynasty': 'tang',
    'author': '某人',
    'title': f'其{i}',
    'rhythmic': '菩薩蠻',
    'paragraphs': ['白日依山盡，黃河入海流。', f'欲窮{i}里目，更上一層樓。'],
    'paragraphs_hans': ['白日依山尽，黄河入海流。', f'欲穷{i}里目。'],
  }


def classic(i):
  book = '花間集' if i % 3 == 0 else '大學'
  return {'book': book, 'title': book} | {
    'author': '',
    'paragraphs': [f'大學之道{i}。', '在明明德。'],
  }


def prose(i):
  return {
    'id': f'p{i}',
    'author': '某',
    'book': '红楼梦',
    'title': f'第{i}回',
    'text': '话说后来。\n且听下回分解。',
    'path': f'content/docs/{i}.md',
  }


def law(i):
  articles = [['#', '第 一 章 總則'], ['第1條', '為甲事，\n制定本法。']]
  return {
    'pcode': f'A{i:07}',
    'title': '某法',
    'articles': articles,
    'no': '第1條',
    'zh': '制定本法。',
    'en': 'This Act is enacted.',
  }


def dialogue(i):
  turns = [{'role': 'usr', 'text': f'你好{i}'}, {'role': 'sys', 'text': '再见'}]
  return {
    'id': f'd{i}',
    'domain': 'film',
    'topic': f'片{i}',
    'turns': turns,
    'script': 'hant',
    'category': 'ai',
    'act': '編劇',
    'prompt': '寫劇本\n',
  }


def couplet(i):
  return {'id': f'c{i}', 'up': '朱樓隔綠柳', 'down': '白塔映青山'}


def sentence(i):
  return {'en': f'Hi {i}.', 'zh': '嗨。', 'attr': '1 A; 2 B'}


FILES = {
  'text/poems_shi_train.jsonl.xz': verse,
  'text/poems_shi_valid.jsonl.gz': verse,
  'text/couplets_verse_train.jsonl.xz': couplet,
  'text/couplets_verse_valid.jsonl.gz': couplet,
  'text/ci_train.jsonl.xz': verse,
  'text/ci_valid.jsonl.gz': verse,
  'text/qu_train.jsonl.xz': verse,
  'text/classics.jsonl.gz': classic,
  'text/luxun_train.jsonl.xz': prose,
  'text/novels_train.jsonl.xz': prose,
  'text/react_docs_zh_hant.jsonl.gz': prose,
  'text/laws_zh_hant_train.jsonl.xz': law,
  'parallel/law_zh_hant_en_train.jsonl.xz': law,
  'parallel/law_zh_hant_en_valid.jsonl.gz': law,
  'parallel/tatoeba_en_zh_train.jsonl.xz': sentence,
  'parallel/tatoeba_en_zh_valid.jsonl.gz': sentence,
  'dialog/kdconv_train.jsonl.xz': dialogue,
  'dialog/kdconv_valid.jsonl.gz': dialogue,
  'dialog/crosswoz_train.jsonl.xz': dialogue,
  'dialog/crosswoz_valid.jsonl.gz': dialogue,
  'dialog/chatterbot_zh.jsonl.gz': dialogue,
  'dialog/persona_prompts_zh_hant.jsonl.gz': dialogue,
}


@pytest.fixture(scope='session')
def prepared_files(tmp_path_factory):
  """A data directory with a tiny file for every public corpus."""
  directory = tmp_path_factory.mktemp('data')
  for name, record_fn in FILES.items():
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    open_fn = gzip.open if name.endswith('.gz') else lzma.open
    # The records of validation files differ from those of training files.
    first = NUM_RECORDS * ('valid' in name)
    with open_fn(path, 'wt', encoding='utf-8') as f:
      for i in range(first, first + NUM_RECORDS):
        f.write(json.dumps(record_fn(i), ensure_ascii=False) + '\n')
  return directory


@pytest.fixture(scope='session')
def session_cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture
def corpora(prepared_files, session_cache, monkeypatch):
  """Lets $WUDAO_DATA name the tiny corpora, and $WUDAO_CACHE a common cache.

  So TFDS prepares each corpus only once per session.
  """
  monkeypatch.setenv('WUDAO_DATA', str(prepared_files))
  monkeypatch.setenv('WUDAO_CACHE', str(session_cache))
  return prepared_files


@pytest.fixture
def declare(monkeypatch):
  """Lets a test declare tasks and mixtures; removes them after the test."""
  modules.load()
  monkeypatch.setattr(registry, 'TASKS', dict(registry.TASKS))
  monkeypatch.setattr(registry, 'MIXTURES', dict(registry.MIXTURES))
  monkeypatch.setattr(registry, 'RATES', dict(registry.RATES))
  return registry
