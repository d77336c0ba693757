import pytest
import seqio

from tasks import registry, text_files, vocabulary


class Source:
  """Records given in the test."""

  splits = ('train', 'validation')

  def __init__(self, *records):
    self._records = records

  def records(self, split):
    if split not in self.splits:
      raise ValueError(f'no split {split}')
    return iter(self._records if split == 'train' else self._records[:1])


@pytest.fixture
def added():
  """Names of tasks and mixtures to forget after the test."""
  names = []
  yield names.append
  for name in names:
    for seqio_registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
      if name in seqio_registry.names():
        seqio_registry.remove(name)


@pytest.fixture
def bytes_vocabulary(monkeypatch):
  """Stands in for a trained model: ids are the bytes plus 3."""

  class Model:
    size = 259

    def encode(self, text):
      return [byte + 3 for byte in text.encode()]

  monkeypatch.setattr(vocabulary.LATE, '_model', Model())


def examples(name, split='train'):
  task = seqio.get_mixture_or_task(name)
  dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False)
  return list(dataset.as_numpy_iterator())


def test_a_text_task_has_targets_with_an_end_mark(added, bytes_vocabulary):
  added('t')
  registry.add_text_task('t', Source('a', 'bc'), lambda record: record)
  assert [e['targets'].tolist() for e in examples('t')] == [
    [100, 1],
    [101, 102, 1],
  ]
  assert [e['targets_pretokenized'] for e in examples('t')] == [b'a', b'bc']
  assert len(examples('t', 'validation')) == 1


def test_a_prefix_task_has_inputs_without_an_end_mark(added, bytes_vocabulary):
  added('t')
  registry.add_prefix_task('t', Source('ab'), lambda r: (r[0] + '\n', r[1]))
  (example,) = examples('t')
  assert example['inputs'].tolist() == [100, 13]
  assert example['targets'].tolist() == [101, 1]
  assert example['inputs_pretokenized'] == b'a\n'
  assert example['targets_pretokenized'] == b'b'


def test_documents_need_no_vocabulary(added):
  added('t')
  registry.add_prefix_task('t', Source('ab'), lambda r: (r[0], r[1]))
  source = seqio.TaskRegistry.get('t').source
  assert list(source.documents('train')) == [{'inputs': 'a', 'targets': 'b'}]


def test_a_record_whose_document_is_none_is_left_out(added):
  added('t')
  source = Source('a', 'b', 'c')
  registry.add_text_task('t', source, lambda r: None if r == 'b' else r)
  documents = seqio.TaskRegistry.get('t').source.documents('train')
  assert [d['targets'] for d in documents] == ['a', 'c']


def test_the_script_is_converted_only_where_a_task_asks(added):
  pytest.importorskip('opencc')
  source = Source('汉语', None)
  for name, convert in (('plain', None), ('hant', 's2t')):
    added(name)
    registry.add_text_task(name, source, lambda r: r, convert=convert)
  plain, hant = (
    [d['targets'] for d in seqio.TaskRegistry.get(n).source.documents('train')]
    for n in ('plain', 'hant')
  )
  assert (plain, hant) == (['汉语'], ['漢語'])


def test_what_is_wrong_with_a_corpus_is_told_before_tensorflow_reads_it(
  added, bytes_vocabulary, tmp_path
):
  added('t')
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"text": "\xff"}\n')
  source = text_files.json_lines({'train': path}, {'text': str})
  registry.add_text_task('t', source, lambda r: r['text'])
  with pytest.raises(ValueError) as error:
    examples('t')
  assert str(error.value).startswith(f'{path}:1: ')


def test_rates_of_a_mixture_are_characters_of_the_training_documents(added):
  for name in ('a', 'b', 'mix'):
    added(name)
  registry.add_text_task('a', Source('一二三', '四'), lambda r: r)
  registry.add_text_task('b', Source('𠮷'), lambda r: r)
  registry.add_mixture('mix', ['a', 'b'])
  mixture = seqio.MixtureRegistry.get('mix')
  assert {t.name: mixture.get_rate(t) for t in mixture.tasks} == {
    'a': 4,
    'b': 1,
  }


def test_a_mixture_gives_the_examples_of_its_tasks(added, bytes_vocabulary):
  for name in ('a', 'b', 'mix'):
    added(name)
  registry.add_text_task('a', Source('1'), lambda r: r)
  registry.add_text_task('b', Source('2'), lambda r: r)
  registry.add_mixture('mix', ['a', 'b'])
  dataset = seqio.MixtureRegistry.get('mix').get_dataset(
    {'targets': 8}, split='train', shuffle=False
  )
  seen = {tuple(e['targets']) for e in dataset.take(30).as_numpy_iterator()}
  assert seen == {(52, 1), (53, 1)}
