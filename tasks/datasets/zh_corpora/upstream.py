"""Turns the files of public repositories into records.

Each function of the table `sources.SOURCES` takes the (path, bytes) pairs of
one repository and gives the records of one corpus. It is used if a prepared
file is missing and the repository can be downloaded. A hash then chooses all
splits. These splits differ from those of the prepared files, so their scores
cannot be compared.
"""

import functools
import hashlib
import io
import json
import pathlib
import re
import zipfile
from collections.abc import Iterator
from typing import Any

Files = Iterator[tuple[str, bytes]]
Records = Iterator[dict[str, Any]]

_REGULATED = re.compile(r'(.{5}|.{7})，(.{5}|.{7})。')
_CHAPTER = re.compile(r'第[一二三四五六七八九十百零〇○]+回\s')


@functools.cache
def _converter(conversion: str):
  import opencc  # Imported here, since only some corpora are converted.

  return opencc.OpenCC(conversion)


def convert(text: str, conversion: str) -> str:
  """Text in another script, by an OpenCC conversion such as 's2t'."""
  return _converter(conversion).convert(text)


def shi(files: Files) -> Records:
  """Poems; if their first pair of lines is the same, they share an id.

  So they are also in the same split.
  """
  for path, data in files:
    dynasty = path.split('.')[1]
    for poem in json.loads(data):
      if poem['paragraphs']:
        opening = hashlib.sha256(poem['paragraphs'][0].encode()).hexdigest()
        yield poem | {'id': f'{dynasty}-{opening[:12]}', 'dynasty': dynasty}


def couplets(files: Files) -> Records:
  """The two middle couplets of each poem with four couplets of equal lines."""
  for poem in shi(files):
    pairs = [_REGULATED.fullmatch(pair) for pair in poem['paragraphs']]
    if len(pairs) != 4 or not all(pairs):
      continue
    lines = [pair.groups() for pair in pairs]
    if len({len(line) for pair in lines for line in pair}) == 1:
      for up, down in lines[1:3]:
        yield {'id': poem['id'], 'up': up, 'down': down}


def ci(files: Files) -> Records:
  """Song lyrics in both scripts."""
  for path, data in files:
    for number, lyric in enumerate(json.loads(data)):
      yield {
        'id': f'{pathlib.Path(path).stem}-{number}',
        'author': convert(lyric['author'], 's2t'),
        'rhythmic': convert(lyric['rhythmic'], 's2t'),
        'paragraphs': [convert(line, 's2t') for line in lyric['paragraphs']],
        'paragraphs_hans': lyric['paragraphs'],
      }


def qu(files: Files) -> Records:
  """Arias, converted into traditional script."""
  for _, data in files:
    for number, aria in enumerate(json.loads(convert(data.decode(), 's2t'))):
      yield aria | {'id': f'qu-{number}'}


def novels(files: Files) -> Records:
  """Chapters, without indents and blank lines."""
  for path, data in files:
    book, title, lines = pathlib.Path(path).stem, None, []
    for line in [*map(str.strip, data.decode().splitlines()), '第一回 ']:
      if _CHAPTER.match(line):
        if title and lines:
          yield {'book': book, 'title': title, 'text': '\n'.join(lines)}
        title, lines = line, []
      elif line:
        lines.append(line)


def markdown(files: Files) -> Records:
  """Pages of markdown, unchanged."""
  for path, data in files:
    yield {'path': path, 'text': data.decode()}


def laws(files: Files) -> Records:
  """Laws; an article keeps its line breaks."""
  for path, data in files:
    law = json.loads(data.decode('utf-8-sig'))
    yield {
      'pcode': pathlib.Path(path).stem,
      'title': law['法規名稱'],
      'articles': [_article(article) for article in law['法規內容']],
    }


def _article(article: dict[str, str]) -> list[str]:
  if '編章節' in article:
    return ['#', article['編章節'].strip()]
  text = article['條文內容'].replace('\r\n', '\n')
  return [article['條號'].replace(' ', ''), text]


def law_pairs(files: Files) -> Records:
  """Articles that have the same number in Chinese and in English."""
  chinese, english = {}, {}
  for path, data in files:
    articles = english if path.startswith('Eng_') else chinese
    for article in json.loads(data.decode('utf-8-sig'))['法規內容']:
      if number := re.search(r'\d+(-\d+)?', article.get('條號', '')):
        key = pathlib.Path(path).stem, number.group()
        articles[key] = article['條文內容'].replace('\r\n', '\n')
  for pcode, number in chinese.keys() & english.keys():
    texts = {'zh': chinese[pcode, number], 'en': english[pcode, number]}
    yield {'pcode': pcode, 'no': f'第{number}條'} | texts


def kdconv(files: Files) -> Records:
  """Chats of two speakers."""
  for path, data in files:
    _, domain, name = path.removesuffix('.json').split('/')
    for number, chat in enumerate(json.loads(data)):
      turns = [{'text': turn['message']} for turn in chat['messages']]
      topic = {'domain': domain, 'topic': chat['name'], 'turns': turns}
      yield {'id': f'kdconv-{domain}-{name}-{number}'} | topic


def crosswoz(files: Files) -> Records:
  """Dialogues of a user and a system, from a zip file inside the repository."""
  for _, data in files:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      dialogues = json.loads(archive.read(archive.namelist()[0]))
    for key, dialogue in dialogues.items():
      turns = [
        {'role': turn['role'], 'text': turn['content']}
        for turn in dialogue['messages']
      ]
      yield {'id': f'crosswoz-{key}', 'turns': turns}


def chatterbot(files: Files) -> Records:
  """Questions with their answers."""
  import yaml  # Imported here, since only this corpus needs it.

  for path, data in files:
    script = 'hant' if '/tchinese/' in path else 'hans'
    category = pathlib.Path(path).stem
    for number, chat in enumerate(yaml.safe_load(data)['conversations']):
      yield {
        'id': f'cb-{script}-{category}-{number}',
        'script': script,
        'category': category,
        'turns': [{'text': str(turn)} for turn in chat],
      }


def personas(files: Files) -> Records:
  """Instructions to play a role."""
  for _, data in files:
    for number, persona in enumerate(json.loads(data)):
      yield persona | {'id': f'persona-{number:03}'}


def tatoeba(files: Files) -> Records:
  """Pairs of an English and a Chinese sentence."""
  for _, data in files:
    for line in data.decode().splitlines():
      en, zh, credit = line.split('\t')
      yield {'en': en, 'zh': zh, 'attr': credit.partition('#')[2]}
