"""Every task of text gives documents in exactly the form stated here."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tasks import mixtures, registry

ROOT = pathlib.Path(mixtures.__file__).parents[1]
TASKS = pathlib.Path(mixtures.__file__).parent
PUBLIC = {  # task -> (inputs or None, targets) of the first training document
  'poems_shi': (None, '其0\n白日依山盡，黃河入海流。欲窮0里目，更上一層樓。'),
  'poems_inverse': (
    None,
    '白日依山盡，黃河入海流。欲窮0里目，更上一層樓。\n其0',
  ),
  'ci': (None, '菩薩蠻\n白日依山盡，黃河入海流。欲窮0里目，更上一層樓。'),
  'qu': (None, '其0\n白日依山盡，黃河入海流。欲窮0里目，更上一層樓。'),
  'couplets_verse': ('朱樓隔綠柳\n', '白塔映青山'),
  'couplets_verse_lm': (None, '朱樓隔綠柳\n白塔映青山'),
  'classics': (None, '大學\n大學之道1。\n在明明德。'),
  'huajian': (None, '花間集\n大學之道0。\n在明明德。'),
  'luxun': (None, '第0回\n话说后来。\n且听下回分解。'),
  'luxun_hant': (None, '第0回\n話說後來。\n且聽下回分解。'),
  'novels': (None, '第0回\n话说后来。\n且听下回分解。'),
  'novels_hant': (None, '第0回\n話說後來。\n且聽下回分解。'),
  'react_docs': (None, '话说后来。\n且听下回分解。'),
  'laws': (None, '某法\n第 一 章 總則\n第1條\u3000為甲事，\n制定本法。'),
  'kdconv': (None, '甲：你好0\n乙：再见'),
  'crosswoz': (None, '用户：你好0\n系统：再见'),
  'chatterbot': (None, '問：你好0\n答：再见'),
  'persona_prompts': (None, '編劇\n寫劇本'),
  'tatoeba_en_zh': ('英文：Hi 0.\n中文：', '嗨。'),
  'tatoeba_zh_en': ('中文：嗨。\n英文：', 'Hi 0.'),
  'law_en_zh': ('英文：This Act is enacted.\n中文：', '制定本法。'),
  'law_zh_en': ('中文：制定本法。\n英文：', 'This Act is enacted.'),
}
BUILTIN = (
  'builtin_couplets',
  'builtin_poems',
  'builtin_essays',
  'builtin_dialogues',
)


def documents(name, split='train'):
  return list(registry.TASKS[name].documents(split))


def test_every_task_is_known_here_and_every_corpus_file_is_imported():
  assert set(registry.TASKS) >= {*PUBLIC, *BUILTIN}
  holds_tasks = {
    path.stem
    for path in TASKS.glob('*.py')
    if '\nregistry.add_' in path.read_text('utf-8')
  }
  # mixtures.py does not import chain_tasks, which needs NumPy. A run names
  # chain_tasks in TASK_MODULES.
  holds_tasks -= {'mixtures', 'chain_tasks'}
  assert holds_tasks == {
    'builtin',
    'ci',
    'classics',
    'couplets',
    'dialogues',
    'laws',
    'poems',
    'prose',
    'zh_en',
  }
  assert all(hasattr(mixtures, name) for name in holds_tasks)


@pytest.mark.parametrize('name', PUBLIC)
def test_a_public_task_gives_documents_of_the_documented_form(name, corpora):
  inputs, targets = PUBLIC[name]
  expected = {'targets': targets}
  if inputs is not None:
    expected = {'inputs': inputs, **expected}
  assert documents(name)[0] == expected


@pytest.mark.parametrize('name', PUBLIC)
def test_a_public_task_names_its_origin_and_its_licence(name):
  text = str(registry.TASKS[name].source)
  assert 'https://github.com/' in text and 'licence' in text


def test_mixtures_hold_the_tasks_of_their_names():
  names = {
    name: set(registry.MIXTURES[name])
    for name in ('builtin', 'zh_classical', 'zh_prose', 'zh_talk', 'zh_en')
  }
  assert names['builtin'] == set(BUILTIN)
  mix = set(registry.MIXTURES['zh_mix'])
  assert mix == names['zh_classical'] | names['zh_prose'] | names['zh_talk']
  # The lyrics of huajian are also in poems_shi. That task holds some of them
  # out, so no mixture may train on huajian as well.
  assert 'huajian' not in mix


def test_builtin_documents_have_the_documented_form(tmp_path, monkeypatch):
  from tasks import builtin

  monkeypatch.setattr(builtin, '_DIRECTORY', tmp_path)
  lines = {
    'couplets': '{"id": "1", "split": "train", "up": "上", "down": "下"}',
    'poems': '{"id": "1", "split": "train", "form": "quatrain5", "title": "題",'
    ' "paragraphs": ["一，二。", "三，四。"]}',
    'essays': '{"id": "1", "split": "train", "title": "題", "text": "文\\n章"}',
    'dialogues': '{"id": "1", "split": "train", "persona": "人", "turns": ['
    '{"role": "user", "text": "嗎"}, {"role": "persona", "text": "呢"}]}',
  }
  for name, line in lines.items():
    (tmp_path / f'{name}.jsonl').write_text(line + '\n', 'utf-8')
  made = {
    name: [
      getattr(builtin, name.removesuffix('s'))(record)
      for record in builtin.corpus(name, **fields).records('train')
    ]
    for name, fields in {
      'couplets': {'up': str, 'down': str},
      'poems': {'title': str, 'paragraphs': [str]},
      'essays': {'title': str, 'text': str},
      'dialogues': {'persona': str, 'turns': [{'role': str, 'text': str}]},
    }.items()
  }
  assert made == {
    'couplets': ['上\n下'],
    'poems': ['題\n一，二。三，四。'],
    'essays': ['題\n文\n章'],
    'dialogues': ['人\n問：嗎\n答：呢'],
  }


@pytest.mark.parametrize('name', BUILTIN)
def test_the_builtin_corpus_is_read_into_two_splits_without_a_shared_document(
  name,
):

  train, validation = documents(name), documents(name, 'validation')
  assert train and validation
  assert not {d['targets'] for d in train} & {d['targets'] for d in validation}


def test_a_new_corpus_is_one_file_of_at_most_thirty_lines(
  tmp_path, monkeypatch, declare
):
  readme = (ROOT / 'README.md').read_text('utf-8')
  blocks = re.findall('```python\n(.*?)```', readme, re.DOTALL)
  [example] = [b for b in blocks if 'registry.add_text_task' in b]
  assert len(example.splitlines()) <= 30
  monkeypatch.setenv('WUDAO_DATA', str(tmp_path))
  (tmp_path / 'letters').mkdir()
  line = '{"id": "1", "place": "臺南", "text": "安好。"}\n'
  (tmp_path / 'letters' / 'a.jsonl').write_text(line, 'utf-8')
  exec(compile(example, 'letters.py', 'exec'), {'__name__': 'letters'})
  assert documents('letters') == [{'targets': '臺南\n安好。'}]


@pytest.mark.parametrize(
  'name', ['poems', 'ci', 'couplets', 'prose', 'laws', 'classics', 'zh_en']
)
def test_a_corpus_of_the_project_is_at_most_thirty_lines_too(name):
  lines = (TASKS / f'{name}.py').read_text('utf-8').splitlines()
  assert len(lines) <= 30


def test_every_task_is_declared_without_seqio_and_without_reading(tmp_path):
  code = """
import sys
import tasks.mixtures
heavy = {'seqio', 'tensorflow', 'tensorflow_datasets', 'opencc', 'numpy'}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
  environment = os.environ | {'WUDAO_DATA': str(tmp_path / 'nothing')}
  subprocess.run(
    [sys.executable, '-c', code], check=True, cwd=TASKS.parent, env=environment
  )
