"""Tests the declaration of tasks and mixtures, without seqio."""

import pytest

from tasks import text_files


class Source:
  """A source of the records that a test passes in."""

  splits = ('train', 'validation')

  def __init__(self, *records):
    self._records = records

  def records(self, split):
    if split not in self.splits:
      raise ValueError(f'no split {split}')
    return iter(self._records if split == 'train' else self._records[:1])


def documents(declare, name, split='train'):
  return list(declare.TASKS[name].documents(split))


def test_a_text_task_has_targets(declare):
  declare.add_text_task('t', Source('a', 'bc'), lambda record: record)
  assert documents(declare, 't') == [{'targets': 'a'}, {'targets': 'bc'}]
  assert len(documents(declare, 't', 'validation')) == 1


def test_a_prefix_task_has_inputs_and_targets(declare):
  declare.add_prefix_task('t', Source('ab'), lambda r: (r[0], r[1]))
  assert documents(declare, 't') == [{'inputs': 'a', 'targets': 'b'}]


def test_a_record_whose_document_is_none_is_left_out(declare):
  source = Source('a', 'b', 'c')
  declare.add_text_task('t', source, lambda r: None if r == 'b' else r)
  assert [d['targets'] for d in documents(declare, 't')] == ['a', 'c']


def test_the_script_is_converted_only_where_a_task_asks(declare):
  pytest.importorskip('opencc')
  source = Source('汉语', None)
  for name, convert in (('plain', None), ('hant', 's2t')):
    declare.add_text_task(name, source, lambda r: r, convert=convert)
  assert documents(declare, 'plain') == [{'targets': '汉语'}]
  assert documents(declare, 'hant') == [{'targets': '漢語'}]


@pytest.fixture
def three_lines(declare, tmp_path):
  """The path of a task's file, which has two good lines and a bad line."""
  path = tmp_path / 'a.txt'
  path.write_bytes('甲\n\\xff\n乙\n'.encode().replace(b'\\xff', b'\xff'))
  declare.add_text_task('t', text_files.plain_text(path), lambda r: r['text'])
  declare.add_mixture('m', ['t'])
  return path


def test_the_share_of_malformed_lines_reaches_the_file_through_a_mixture(
  declare, three_lines
):
  with pytest.raises(ValueError, match='1 of 3 lines .* at most 0.01%'):
    documents(declare, 't')
  declare.allow_malformed('m', 0.5)
  assert documents(declare, 't') == [{'targets': '甲'}, {'targets': '乙'}]


def test_of_too_few_records_none_may_be_held_out(declare, three_lines):
  three_lines.write_text('甲\n乙\n', 'utf-8')
  error = str(declare.no_documents('t', 'validation'))
  assert 'holds out 5% of them, and none of these 2 fell there' in error


def test_a_document_function_that_leaves_all_out_is_named(declare):
  declare.add_text_task('t', Source('a', 'b'), lambda record: None)
  assert 'leaves out all 2 records' in str(declare.no_documents('t', 'train'))


def test_a_malformed_corpus_is_an_error_before_its_first_document(
  declare, tmp_path
):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"text": "\xff"}\n')
  source = text_files.json_lines({'train': path}, {'text': str})
  declare.add_text_task('t', source, lambda r: r['text'])
  with pytest.raises(ValueError) as error:
    declare.TASKS['t'].documents('train')
  assert str(error.value).startswith(f'{path}:1: ')


def test_the_size_of_a_task_is_characters_of_its_training_documents(declare):
  declare.add_text_task('a', Source('一二三', '四'), lambda r: r)
  declare.add_text_task('b', Source('𠮷'), lambda r: r)
  sizes = {name: declare.TASKS[name].num_chars for name in 'ab'}
  assert sizes == {'a': 4, 'b': 1}


def test_a_mixture_has_the_splits_of_its_tasks(declare):
  declare.add_text_task('a', Source('1'), lambda r: r)
  source = text_files.plain_text({'train': 'no.txt'})
  declare.add_text_task('b', source, lambda r: r['text'])
  declare.add_mixture('mix', ['a', 'b'])
  assert declare.splits_of('mix') == {'train': ['a', 'b'], 'validation': ['a']}


def test_a_name_can_be_declared_only_once(declare):
  declare.add_text_task('t', Source('a'), lambda r: r)
  declare.add_mixture('mix', ['t'])
  for add in (
    lambda name: declare.add_text_task(name, Source('b'), lambda r: r),
    lambda name: declare.add_mixture(name, ['t']),
  ):
    with pytest.raises(
      ValueError, match=f"got 't', which a task of {__name__}"
    ):
      add('t')
    with pytest.raises(ValueError, match="got 'mix', which a mixture has"):
      add('mix')


@pytest.mark.parametrize('rates', [[1.0], [1.0, 0.0], [1.0, -1.0]])
def test_each_task_of_a_mixture_with_rates_needs_one_above_0(declare, rates):
  for name in 'ab':
    declare.add_text_task(name, Source('甲'), lambda record: record)
  with pytest.raises(ValueError, match='a rate above 0 for each of its 2'):
    declare.add_mixture('mix', ['a', 'b'], rates)
  assert 'mix' not in declare.MIXTURES


def test_a_mixture_of_a_task_that_is_not_declared_is_refused(declare):
  with pytest.raises(
    ValueError, match="must consist of declared tasks, got 'x'"
  ):
    declare.add_mixture('mix', ['x'])
