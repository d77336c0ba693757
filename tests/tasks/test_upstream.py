"""Files in the layout of the public repositories become records."""

import io
import json
import re
import zipfile

import pytest

from tasks import text_files
from tasks.datasets.zh_corpora import sources

VERSE = ['白日依山盡，黃河入海流。', '欲窮千里目，更上一層樓。']


def packed(name, data):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as f:
    f.writestr(name, data)
  return buffer.getvalue()


def as_json(value):
  return json.dumps(value, ensure_ascii=False).encode()


POEMS = as_json(
  [
    {'author': '某', 'title': '其一', 'paragraphs': VERSE * 2, 'id': 'uuid'},
    {'author': '某', 'title': '無', 'paragraphs': []},
  ]
)
LAW = as_json(
  {
    '法規名稱': '某法',
    '法規內容': [
      {'編章節': '   第 一 章 總則'},
      {'條號': '第 3-1 條', '條文內容': '甲。\r\n乙。'},
    ],
  }
)
ENGLISH = as_json(
  {'法規內容': [{'條號': 'Article 3-1', '條文內容': 'A.\r\nB.'}]}
)
CHAT = """\
categories:
- food
conversations:
- - 你喝酒嗎
  - 不。
""".encode()
LAYOUTS = {  # source -> (files of its repository, records made from them)
  'poems_shi': (
    {'全唐诗/poet.tang.0.json': POEMS, '全唐诗/authors.tang.json': b'[]'},
    # The id ends in the first digits of the SHA-256 of the first two lines.
    [
      {
        'id': 'tang-f263a3f67dd3',
        'title': '其一',
        'author': '某',
        'paragraphs': VERSE * 2,
        'dynasty': 'tang',
      }
    ],
  ),
  'couplets_verse': (
    {'全唐诗/poet.song.1000.json': POEMS},
    [
      {'id': 'song-f263a3f67dd3', 'up': '欲窮千里目', 'down': '更上一層樓'},
      {'id': 'song-f263a3f67dd3', 'up': '白日依山盡', 'down': '黃河入海流'},
    ],
  ),
  'ci': (
    {
      '宋词/ci.song.0.json': as_json(
        [{'author': '赵某', 'rhythmic': '菩萨蛮', 'paragraphs': ['东风软。']}]
      )
    },
    [
      {
        'id': 'ci.song.0-0',
        'author': '趙某',
        'rhythmic': '菩薩蠻',
        'paragraphs': ['東風軟。'],
        'paragraphs_hans': ['东风软。'],
      }
    ],
  ),
  'qu': (
    {
      '元曲/yuanqu.json': as_json(
        [
          {
            'dynasty': 'yuan',
            'author': '某',
            'title': '黄花',
            'paragraphs': ['来'],
          }
        ]
      )
    },
    [{'id': 'qu-0', 'author': '某', 'title': '黃花', 'paragraphs': ['來']}],
  ),
  'novels': (
    {
      '水浒传.txt': '水浒传\n\n第一回　甲\n\n    话说。\n    又诗：\n'
      '第二回 乙\n  且说第一回的事。\n'.encode()
    },
    [
      {'book': '水浒传', 'title': '第一回　甲', 'text': '话说。\n又诗：'},
      {'book': '水浒传', 'title': '第二回 乙', 'text': '且说第一回的事。'},
    ],
  ),
  'react_docs': (
    {'content/docs/a.md': '# 甲\n'.encode(), 'content/blog/b.md': b'no'},
    [{'path': 'content/docs/a.md', 'text': '# 甲\n'}],
  ),
  'laws': (
    {'FalV/A0000001.json': LAW, 'Eng_FalV/A0000001.json': ENGLISH},
    [
      {
        'pcode': 'A0000001',
        'title': '某法',
        'articles': [['#', '第 一 章 總則'], ['第3-1條', '甲。\n乙。']],
      }
    ],
  ),
  'law_zh_en': (
    {
      'FalV/A0000001.json': LAW,
      'Eng_FalV/A0000001.json': ENGLISH,
      'FalV/A0000002.json': LAW,
    },
    [
      {'pcode': 'A0000001', 'no': '第3-1條', 'zh': '甲。\n乙。', 'en': 'A.\nB.'}
    ],
  ),
  'kdconv': (
    {
      'data/film/dev.json': as_json(
        [{'name': '某片', 'messages': [{'message': '你好', 'attrs': []}]}]
      )
    },
    [
      {
        'id': 'kdconv-film-dev-0',
        'domain': 'film',
        'topic': '某片',
        'turns': [{'text': '你好'}],
      }
    ],
  ),
  'crosswoz': (
    {
      'data/crosswoz/val.json.zip': packed(
        'val.json',
        as_json(
          {
            '7': {
              'type': '单领域',
              'messages': [{'role': 'usr', 'content': '你好'}],
            }
          }
        ),
      )
    },
    [{'id': 'crosswoz-7', 'turns': [{'role': 'usr', 'text': '你好'}]}],
  ),
  'chatterbot': (
    {
      'chatterbot_corpus/data/tchinese/food.yml': CHAT,
      'chatterbot_corpus/data/dutch/food.yml': b'conversations: []',
    },
    [
      {
        'id': 'cb-hant-food-0',
        'script': 'hant',
        'category': 'food',
        'turns': [{'text': '你喝酒嗎'}, {'text': '不。'}],
      }
    ],
  ),
  'persona_prompts': (
    {'prompts-zh-TW.json': as_json([{'act': '編劇', 'prompt': '寫'}])},
    [{'id': 'persona-000', 'act': '編劇', 'prompt': '寫'}],
  ),
  'tatoeba': (
    {
      'data/cmn.txt': 'Hi.\t嗨。\tCC-BY 2.0 (France) Attribution: tatoeba.org'
      ' #538123 (CM) & #891077 (Martha)\n'.encode()
    },
    [{'en': 'Hi.', 'zh': '嗨。', 'attr': '538123 (CM) & #891077 (Martha)'}],
  ),
}


def test_every_corpus_is_tested_here_or_has_no_rule():
  without = {name for name, s in sources.SOURCES.items() if s.parse is None}
  assert without == {'classics', 'luxun'}
  assert set(LAYOUTS) | without == set(sources.SOURCES)


@pytest.mark.parametrize('name', LAYOUTS)
def test_files_of_the_repository_become_records(name):
  files, expected = LAYOUTS[name]
  source = sources.SOURCES[name]
  wanted = [
    (path, data)
    for path, data in files.items()
    if re.fullmatch(source.members, path)
  ]
  records = [
    text_files.conform(record, source.fields)
    for record in source.parse(iter(wanted))
  ]
  assert records == expected


def test_a_corpus_names_its_repository_at_a_commit():
  for source in sources.SOURCES.values():
    assert re.fullmatch(
      r'https://github\.com/[\w.-]+/[\w.-]+/archive/[0-9a-f]{40}\.zip',
      source.url,
    )


def test_uneven_verse_gives_no_couplets():
  poem = {'author': '', 'title': '', 'paragraphs': VERSE + ['一，二。'] * 2}
  files = [('全唐诗/poet.tang.0.json', as_json([poem]))]
  assert not list(sources.SOURCES['couplets_verse'].parse(iter(files)))
