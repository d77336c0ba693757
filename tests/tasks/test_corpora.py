"""The built-in corpus obeys rules of form, tone and script, and is original."""

import collections
import gzip
import json
import lzma
import os
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CORPORA = ROOT / 'tasks' / 'corpora'
SHARED = pathlib.Path(
  os.environ.get('WUDAO_DATA', ROOT.parent / 'shared' / 'data')
)
ENTERING = frozenset(
  ''.join(
    line
    for line in (ROOT / 'moe' / 'evaluate' / 'entering_tone.txt')
    .read_text(encoding='utf-8')
    .splitlines()
    if not line.startswith('#')
  )
)
FORMS = {  # form -> (characters in a line, lines)
  'quatrain5': (5, 4),
  'quatrain7': (7, 4),
  'octave5': (5, 8),
  'octave7': (7, 8),
}
CJK = re.compile(r'[\u3400-\u9fff\U00020000-\U0003ffff]')


def records(name):
  path = CORPORA / f'{name}.jsonl'
  lines = path.read_text(encoding='utf-8').splitlines()
  return [json.loads(line) for line in lines]


def tones(character):
  """The set of tone classes of a character in verse: 'level' and 'oblique'.

  Mandarin tones 1 and 2 are level, tones 3 and 4 are oblique. But a character
  with an entering tone is always oblique. A character with several readings can
  have both classes.
  """
  import pypinyin

  if character in ENTERING:
    return {'oblique'}
  readings = pypinyin.pinyin(
    character, style=pypinyin.Style.TONE3, heteronym=True
  )[0]
  return {'level' if r[-1] in '12' else 'oblique' for r in readings}


def verse_lines(text):
  """Splits verse into lines at punctuation marks."""
  return [part for part in re.split('[，。？！；、：]', text) if part]


def text_of(record):
  """All text of a record in one string."""
  parts = [record.get(key, '') for key in ('up', 'down', 'title', 'text')]
  parts += record.get('paragraphs', [])
  parts += [record.get('persona', '')]
  parts += [turn['text'] for turn in record.get('turns', [])]
  return '\n'.join(part for part in parts if part)


def couplet_faults(record):
  up, down = record['up'], record['down']
  if len(up) != len(down):
    return f'lines of {len(up)} and {len(down)} characters'
  pattern = [bool(CJK.match(c)) for c in up]
  if pattern != [bool(CJK.match(c)) for c in down]:
    return 'punctuation of the two lines differs'
  if not pattern[-1]:
    return 'a line ends in punctuation: leave it out'
  if 'oblique' not in tones(up[-1]):
    return f'first line must end in an oblique tone, not {up[-1]}'
  if 'level' not in tones(down[-1]):
    return f'second line must end in a level tone, not {down[-1]}'
  return ''


def poem_faults(record):
  width, count = FORMS[record['form']]
  if len(record['paragraphs']) != count // 2:
    return f'{count // 2} paragraphs of two lines each are required'
  for paragraph in record['paragraphs']:
    pair = verse_lines(paragraph)
    if [len(line) for line in pair] != [width, width]:
      return f'{paragraph}: two lines of {width} characters are required'
    if paragraph[width] != '，' or paragraph[-1] not in '。？！':
      return f'{paragraph}: punctuate as ，。'
    if 'level' not in tones(pair[1][-1]):
      return f'{paragraph}: must end in a level tone, not {pair[1][-1]}'
  for paragraph in record['paragraphs'][1:]:
    end = paragraph[width - 1]
    if 'oblique' not in tones(end):
      return f'{paragraph}: first line must end in an oblique tone, not {end}'
  return ''


def prose_faults(record):
  length = len(CJK.findall(record['text']))
  return '' if length >= 200 else f'{length} characters, 200 required'


def dialogue_faults(record):
  turns = record['turns']
  if len(turns) < 4:
    return f'{len(turns)} turns, 4 required'
  if not record['persona'].strip():
    return 'persona is empty'
  if {turn['role'] for turn in turns} != {'user', 'persona'}:
    return 'roles must be user and persona'
  return ''


FAULTS = {
  'couplets': couplet_faults,
  'poems': poem_faults,
  'essays': prose_faults,
  'dialogues': dialogue_faults,
}
LEAST = {'couplets': 600, 'poems': 200, 'essays': 180, 'dialogues': 80}


@pytest.mark.parametrize('name', FAULTS)
def test_every_record_keeps_the_rules_of_its_form(name):
  pytest.importorskip('pypinyin')
  faults = {r['id']: FAULTS[name](r) for r in records(name)}
  assert not {key: fault for key, fault in faults.items() if fault}


@pytest.mark.parametrize('name', LEAST)
def test_there_are_enough_records(name):
  assert len(records(name)) >= LEAST[name]


def test_the_corpus_holds_more_than_a_hundred_thousand_characters():
  text = ''.join(text_of(r) for name in FAULTS for r in records(name))
  assert len(CJK.findall(text)) >= 110_000


def test_ids_are_unique_and_splits_are_named():
  everything = [r for name in FAULTS for r in records(name)]
  assert len({r['id'] for r in everything}) == len(everything)
  assert {r['split'] for r in everything} == {'train', 'validation'}


@pytest.mark.parametrize('name', FAULTS)
def test_no_text_is_written_twice(name):
  seen = collections.Counter()
  for record in records(name):
    if name == 'couplets':
      seen.update([record['up'], record['down']])
    elif name == 'poems':
      seen.update(line for p in record['paragraphs'] for line in verse_lines(p))
    else:
      long_parts = re.split('[。？！\n]', text_of(record))
      seen.update(part for part in long_parts if len(part) >= 12)
  assert not [text for text, count in seen.items() if count > 1]


def test_the_script_is_traditional():
  opencc = pytest.importorskip('opencc')
  convert = opencc.OpenCC('s2t').convert
  # These characters are correct in traditional script, but OpenCC takes them
  # for simplified ones and replaces them.
  allowed = frozenset(
    '吃灶娘念具雇虱出群裡里后台松云余谷斗丑干征志借佣制咸岳幸御扎折游畫痴秋'
    '范致蒙表谷采錶面麵了几制卷占只吁周布系才向伙家准沖'
    '注涂托挂欲凶升胡恤札回弦欣杰炮煉秘累線舍雕杯床峰鄰蹤'
    '眾著衛粽綉裏塚煙唇嘆吊糊噪夥峯嘆臺暖沉污鄉匯蔑淒卹脣'
    '岩巖厘勛葉隻瞭纔鬆鍾鐘乾'
  )
  bad = collections.Counter()
  for name in FAULTS:
    for record in records(name):
      text = text_of(record)
      for old, new in zip(text, convert(text), strict=False):
        if old != new and old not in allowed:
          bad[old + new] += 1
  assert not bad


def _published_lines():
  """Every clause of at least five characters in the shared text data."""
  lines = set()
  for path in sorted((SHARED / 'text').glob('*.jsonl*')):
    open_fn = {'.gz': gzip.open, '.xz': lzma.open}.get(path.suffix, open)
    with open_fn(path, 'rt', encoding='utf-8') as f:
      for line in f:
        parts = re.split(r'[^\u3400-\u9fff\U00020000-\U0003ffff]+', line)
        lines.update(part for part in parts if len(part) >= 5)
  return lines


@pytest.mark.slow
def test_no_line_of_verse_was_published_by_others():
  if not (SHARED / 'text').is_dir():
    pytest.skip(f'no published text to compare with in {SHARED}')
  published = _published_lines()
  ours = {
    part
    for name in FAULTS
    for r in records(name)
    for part in re.split(r'[^\u3400-\u9fff]+', text_of(r))
    if len(part) >= 5
  }
  # Every line of verse must be original. In prose only clauses of 8 characters
  # or more must be, since short ones such as "這是什麼意思" are common.
  verse = {
    line
    for r in records('poems')
    for p in r['paragraphs']
    for line in verse_lines(p)
  }
  verse |= {r[side] for r in records('couplets') for side in ('up', 'down')}
  assert not verse & published
  assert not {part for part in ours & published if len(part) >= 8}
