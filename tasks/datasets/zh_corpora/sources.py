"""Lists the public Chinese corpora with their contents, origins and splits."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tasks import splits, text_files
from tasks.datasets.zh_corpora import upstream

Record = dict[str, Any]


def _id(record: Record) -> str:
  return record['id']


def _text(record: Record) -> str:
  # Records cannot be grouped by title, since some aphorisms have none and one
  # lyric has two.
  return ''.join(record['paragraphs'])


def _first_turn(record: Record) -> str:
  # Most exchanges exist in both scripts, and both versions must be in the same
  # split.
  return upstream.convert(record['turns'][0]['text'], 't2s')


@dataclasses.dataclass(frozen=True)
class PublicCorpus:
  """The facts about a public corpus.

  Attributes:
    description: a sentence about the records.
    repository: 'owner/name' on GitHub.
    commit: the version of the repository that is read.
    licence: licence of the data.
    fields: the type of a record, as `text_files.conform` expects it.
    files: split -> prepared file, under `text_files.data_directory()`.
    members: regular expression for paths of the repository's files to read.
    parse: (path, bytes) of these files -> records; None if the prepared files
      cannot be made from the repository.
    group_fn: record -> key; records with the same key share a split.
    keep_apart: whether 'train' leaves out the groups that `splits.by_hash`
      holds out, although 'validation' has a file. This is needed if another
      corpus holds out the same groups by `splits.by_hash`.
  """

  description: str
  repository: str
  commit: str
  licence: str
  fields: text_files.Fields
  files: Mapping[str, str]
  members: str = ''
  parse: Callable[[Iterator[tuple[str, bytes]]], Iterator[Record]] | None = None
  group_fn: Callable[[Record], str] = _id
  keep_apart: bool = False

  @property
  def url(self) -> str:
    """Address of an archive of the repository's files at the commit."""
    return f'https://github.com/{self.repository}/archive/{self.commit}.zip'

  def fingerprint(self) -> dict[str, str]:
    """Name -> SHA-256 of every prepared file; {} if one is missing."""
    paths = {
      name: text_files.data_directory() / name for name in self.files.values()
    }
    if not all(path.is_file() for path in paths.values()):
      return {}
    return {
      name: hashlib.sha256(path.read_bytes()).hexdigest()
      for name, path in paths.items()
    }

  def prepared(self, split: str) -> Iterator[Record]:
    """Reads the records of a split from the prepared files."""
    lines = text_files.json_lines(self.files, self.fields)
    if 'validation' in self.files:
      records = lines.records(split)
      if split == 'validation' or not self.keep_apart:
        return records
    else:
      records = lines.records('train')
    return (r for r in records if splits.by_hash(self.group_fn(r)) == split)

  def downloaded(
    self, split: str, members: Iterator[tuple[str, bytes]]
  ) -> Iterator[Record]:
    """Reads the records of a split from an archive of the repository."""
    # A GitHub archive has one top folder, which is named after the commit. This
    # cuts off its name.
    inside = ((path.partition('/')[2], data) for path, data in members)
    matching = (
      (path, data) for path, data in inside if re.fullmatch(self.members, path)
    )
    for record in self.parse(matching):
      record = text_files.conform(record, self.fields)
      if splits.by_hash(self.group_fn(record)) == split:
        yield record


_POETRY = {
  'repository': 'chinese-poetry/chinese-poetry',
  'commit': '99ebbef7e1345c0985c44b9fd96a3f9e776f117b',
  'licence': 'MIT (texts are public domain)',
}
_LAWS = {
  'repository': 'kong0107/mojLawSplitJSON',
  'commit': '0d26e6c7c759821bbb6465162ffe149af5aed203',
  'licence': 'no copyright (statutes: ROC Copyright Act, article 9)',
  'group_fn': lambda law: law['pcode'],
}
_VERSE = {'id': str, 'title': str, 'author': str, 'paragraphs': [str]}
_TURNS = [{'text': str}]

SOURCES = {
  'poems_shi': PublicCorpus(
    'Tang and Song shi poems, traditional; a paragraph is a pair of lines.',
    **_POETRY,
    fields=_VERSE | {'dynasty': str},
    files={
      'train': 'text/poems_shi_train.jsonl.xz',
      'validation': 'text/poems_shi_valid.jsonl.gz',
    },
    members=r'全唐诗/poet\.(tang|song)\.\d+\.json',
    parse=upstream.shi,
  ),
  'couplets_verse': PublicCorpus(
    'The two parallel couplets in the middle of regulated verse of poems_shi.',
    **_POETRY,
    fields={'id': str, 'up': str, 'down': str},
    files={
      'train': 'text/couplets_verse_train.jsonl.xz',
      'validation': 'text/couplets_verse_valid.jsonl.gz',
    },
    members=r'全唐诗/poet\.(tang|song)\.\d+\.json',
    parse=upstream.couplets,
  ),
  'ci': PublicCorpus(
    'Song ci lyrics; `paragraphs` is OpenCC s2t of `paragraphs_hans`.',
    **_POETRY,
    fields={
      'id': str,
      'author': str,
      'rhythmic': str,
      'paragraphs': [str],
      'paragraphs_hans': [str],
    },
    files={
      'train': 'text/ci_train.jsonl.xz',
      'validation': 'text/ci_valid.jsonl.gz',
    },
    members=r'宋词/ci\.song\.\d+\.json',
    parse=upstream.ci,
  ),
  'qu': PublicCorpus(
    'Yuan qu arias, OpenCC s2t of a simplified source.',
    **_POETRY,
    fields=_VERSE,
    files={'train': 'text/qu_train.jsonl.xz'},
    members=r'元曲/yuanqu\.json',
    parse=upstream.qu,
  ),
  'classics': PublicCorpus(
    'Analects, Mencius, Songs, Chuci, Huajian ji and primers, traditional.',
    **_POETRY,
    fields={'book': str, 'title': str, 'author': str, 'paragraphs': [str]},
    files={'train': 'text/classics.jsonl.gz'},
    group_fn=_text,
  ),
  'luxun': PublicCorpus(
    'Essays and stories of Lu Xun, simplified, editorial notes cut by rule.',
    repository='tallusil/luxun-novel-analysis',
    commit='432ecfaa721f3f8a08268dabfc0a301ea3ffa50e',
    licence='MIT (author died in 1936)',
    fields={'id': str, 'book': str, 'title': str, 'text': str},
    files={'train': 'text/luxun_train.jsonl.xz'},
  ),
  'novels': PublicCorpus(
    'Four vernacular novels of Ming and Qing by chapter, simplified.',
    repository='tennessine/corpus',
    commit='c5ce96aca36c6a3cb4da5f0ff7d2d5fa30c32aea',
    licence='no licence file (texts are public domain)',
    fields={'book': str, 'title': str, 'text': str},
    files={'train': 'text/novels_train.jsonl.xz'},
    members=r'(三国演义|水浒传|红楼梦|西游记)\.txt',
    parse=upstream.novels,
    group_fn=lambda chapter: '{book}/{title}'.format(**chapter),
  ),
  'react_docs': PublicCorpus(
    'Documentation of React, markdown, traditional.',
    repository='reactjs/zh-hant.reactjs.org',
    commit='387bcdcb7adebbb64a742fac17b4dfe6a568e829',
    licence='CC BY 4.0',
    fields={'path': str, 'text': str},
    files={'train': 'text/react_docs_zh_hant.jsonl.gz'},
    members=r'content/(docs|tutorial)/[^/]*\.md',
    parse=upstream.markdown,
    group_fn=lambda page: page['path'],
  ),
  'laws': PublicCorpus(
    'Constitution and statutes of Taiwan; an article `#` is a heading.',
    **_LAWS,
    fields={'pcode': str, 'title': str, 'articles': [[str]]},
    files={'train': 'text/laws_zh_hant_train.jsonl.xz'},
    members=r'FalV/\w+\.json',
    parse=upstream.laws,
  ),
  'law_zh_en': PublicCorpus(
    'Articles of the laws of Taiwan with the official English.',
    **_LAWS,
    fields={'pcode': str, 'no': str, 'zh': str, 'en': str},
    files={
      'train': 'parallel/law_zh_hant_en_train.jsonl.xz',
      'validation': 'parallel/law_zh_hant_en_valid.jsonl.gz',
    },
    members=r'(Eng_)?FalV(MingLing)?/\w+\.json',
    parse=upstream.law_pairs,
    keep_apart=True,
  ),
  'kdconv': PublicCorpus(
    'Chat about films, music and travel, two speakers in turn, simplified.',
    repository='thu-coai/KdConv',
    commit='653db76432de09a004ba708a68f8bbd5500e6bec',
    licence='Apache-2.0',
    fields={'id': str, 'domain': str, 'topic': str, 'turns': _TURNS},
    files={
      'train': 'dialog/kdconv_train.jsonl.xz',
      'validation': 'dialog/kdconv_valid.jsonl.gz',
    },
    members=r'data/(film|music|travel)/(train|dev|test)\.json',
    parse=upstream.kdconv,
    group_fn=lambda chat: chat['topic'],
  ),
  'crosswoz': PublicCorpus(
    'A user and a system plan days in Beijing, simplified.',
    repository='thu-coai/CrossWOZ',
    commit='df82c9fdff91b9b130f2d6b89110d3870ba6260e',
    licence='Apache-2.0',
    fields={'id': str, 'turns': [{'role': str, 'text': str}]},
    files={
      'train': 'dialog/crosswoz_train.jsonl.xz',
      'validation': 'dialog/crosswoz_valid.jsonl.gz',
    },
    members=r'data/crosswoz/(train|val|test)\.json\.zip',
    parse=upstream.crosswoz,
  ),
  'chatterbot': PublicCorpus(
    'Short exchanges, traditional and simplified.',
    repository='gunthercox/chatterbot-corpus',
    commit='a01efece26661309b870af0251d96f94ee09fb19',
    licence='BSD-3-Clause',
    fields={'id': str, 'script': str, 'category': str, 'turns': _TURNS},
    files={'train': 'dialog/chatterbot_zh.jsonl.gz'},
    members=r'chatterbot_corpus/data/t?chinese/\w+\.yml',
    parse=upstream.chatterbot,
    group_fn=_first_turn,
  ),
  'persona_prompts': PublicCorpus(
    'Instructions to play a part, traditional.',
    repository='PlexPt/awesome-chatgpt-prompts-zh',
    commit='367ed18b9c50b702d762c6fbc2885107141acb62',
    licence='MIT',
    fields={'id': str, 'act': str, 'prompt': str},
    files={'train': 'dialog/persona_prompts_zh_hant.jsonl.gz'},
    members=r'prompts-zh-TW\.json',
    parse=upstream.personas,
  ),
  'tatoeba': PublicCorpus(
    'Sentences in English and Chinese, scripts mixed; attr names writers.',
    repository='DaoChaShao/py-st-dl-translater-2.0',
    commit='620408eda1721f683e2413778ad19e4f94691053',
    licence='CC BY 2.0 FR, attributed by row',
    fields={'en': str, 'zh': str, 'attr': str},
    files={
      'train': 'parallel/tatoeba_en_zh_train.jsonl.xz',
      'validation': 'parallel/tatoeba_en_zh_valid.jsonl.gz',
    },
    members=r'data/cmn\.txt',
    parse=upstream.tatoeba,
    group_fn=lambda pair: pair['en'],
  ),
}
