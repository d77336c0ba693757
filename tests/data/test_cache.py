import numpy as np
import pytest

seqio = pytest.importorskip('seqio')

import tensorflow as tf  # noqa: E402

from moe.data import cache, verify  # noqa: E402
from moe.data.store import Store  # noqa: E402

TEXTS = ['白日依山盡', 'a\u2581b c', '', '黃河\n入海流𠮷']


@pytest.fixture
def add_task(tmp_path):
  """Returns a function that registers a task, from lines or from a source."""
  names = []

  def add(name, texts=None, source=None, inputs=None, extra=()):
    columns = {'targets': texts} | ({'inputs': inputs} if inputs else {})
    if source is None:

      def dataset_fn(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices(
          {key: tf.constant(column) for key, column in columns.items()}
        )

      source = seqio.FunctionDataSource(dataset_fn, ['train', 'validation'])
    seqio.TaskRegistry.add(
      name,
      source=source,
      preprocessors=[
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos,
        *extra,
      ],
      output_features={
        key: seqio.Feature(seqio.ByteVocabulary(), add_eos=key == 'targets')
        for key in columns
      },
    )
    names.append(name)

  yield add
  for name in names:
    seqio.TaskRegistry.remove(name)


@pytest.fixture
def run(tmp_path, vocabulary):
  def cache_task(name, **options):
    return cache.cache_task(name, 'train', tmp_path, vocabulary.path, **options)

  return cache_task


def texts_of(tmp_path, vocabulary, name):
  opened = Store(tmp_path / name / 'train')
  records = opened.read(range(opened.lengths.size))
  return [vocabulary.decode(record['tokens'].tolist()) for record in records]


def test_documents_are_kept_in_order_and_whole(
  add_task, run, tmp_path, vocabulary
):
  add_task('t_whole', TEXTS)
  manifest = run('t_whole')
  # The empty text is left out. U+2581 must survive, although seqio's tokeniser
  # replaces it by a space.
  kept = [text for text in TEXTS if text]
  assert texts_of(tmp_path, vocabulary, 't_whole') == kept
  assert manifest['records'] == 3
  counts = manifest['counts']
  assert counts['documents'] == 4 and counts['empty'] == 1
  assert counts['respelt'] == 1 and counts['malformed'] == 0
  # The texts have 5 + 5 + 7 characters and 15 + 7 + 20 bytes: U+2581 has 3
  # bytes, the last character has 4.
  assert counts['chars'] == 17 and counts['bytes'] == 42
  assert counts['unknown_tokens'] == 0
  # The byte tokens are 3 of U+2581, 4 of the last character, and 1 each of a, b
  # and c, which no training line contains.
  assert counts['byte_tokens'] == 10
  assert manifest['vocabulary_sha256'] == vocabulary.sha256
  assert verify.verify(tmp_path / 't_whole' / 'train') == []


def test_inputs_are_given_and_not_scored(add_task, run, tmp_path, vocabulary):
  add_task('t_prefix', ['入海流'], inputs=['黃河\n'])
  counts = run('t_prefix')['counts']
  (record,) = Store(tmp_path / 't_prefix' / 'train').read([0])
  assert vocabulary.decode(record['tokens'].tolist()) == '黃河\n入海流'
  assert record['loss_weights'].tolist() == [0, 0, 0, 1, 1, 1, 1]
  assert record['num_chars'] == 3 and record['num_bytes'] == 9
  assert counts['chars'] == 3 and counts['scored_tokens'] == 4
  assert verify.verify(tmp_path / 't_prefix' / 'train') == []


def test_a_source_with_documents_gives_the_same_store(add_task, run, tmp_path):
  class Source(seqio.FunctionDataSource):
    def documents(self, split):
      return ({'targets': text} for text in TEXTS)

  add_task('t_slow', TEXTS)
  add_task('t_fast', TEXTS, Source(lambda split, shuffle_files: 0, ['train']))
  fast, slow = run('t_fast'), run('t_slow')
  assert fast['content_sha256'] == slow['content_sha256']


def test_documents_is_not_called_where_a_task_does_more_than_tokenise(
  add_task, run, tmp_path, vocabulary
):
  class Source(seqio.FunctionDataSource):
    def documents(self, split):
      raise AssertionError('the filter of the task would be skipped')

  def dataset_fn(split, shuffle_files):
    return tf.data.Dataset.from_tensor_slices({'targets': ['白日', '山']})

  def long_ones(dataset):
    return dataset.filter(lambda example: tf.size(example['targets']) > 2)

  add_task(
    't_filter', ['白日'], Source(dataset_fn, ['train']), extra=[long_ones]
  )
  run('t_filter')
  assert texts_of(tmp_path, vocabulary, 't_filter') == ['白日']


def test_ids_are_small_where_the_vocabulary_is(add_task, run, tmp_path):
  add_task('t_dtype', TEXTS)
  run('t_dtype')
  (record,) = Store(tmp_path / 't_dtype' / 'train').read([0])
  assert record['tokens'].dtype == np.uint16 and record['tokens'][-1] == 1


def test_bad_utf8_beyond_the_fraction_is_an_error(add_task, run, tmp_path):
  add_task('t_bad', [b'\xe7\x99\xbd', b'\xe7\x99', b'ok'])
  with pytest.raises(
    ValueError,
    match="t_bad/train: at most 0.0001 .* got 1 of 3, .* document 1: 'utf-8'",
  ):
    run('t_bad')
  assert not (tmp_path / 't_bad' / 'train').exists()


def test_bad_utf8_within_the_fraction_is_counted(
  add_task, run, tmp_path, vocabulary
):
  add_task('t_some', [b'\xe7\x99\xbd', b'\xe7\x99', b'ok'])
  counts = run('t_some', max_bad_fraction=0.5)['counts']
  assert counts['malformed'] == 1
  assert texts_of(tmp_path, vocabulary, 't_some') == ['白', 'ok']


def test_a_corpus_that_is_all_bad_is_given_up_early(add_task, run):
  add_task('t_gbk', [b'\xb0\xd7'] * 25_000)
  with pytest.raises(ValueError, match='got 10000 of 10000'):
    run('t_gbk')


def test_a_file_that_breaks_off_is_one_sentence(add_task, run, tmp_path):
  path = tmp_path / 'broken.tfrecord'
  with tf.io.TFRecordWriter(str(path)) as writer:
    writer.write(b'whole')
  path.write_bytes(path.read_bytes()[:-2])

  def dataset_fn(split, shuffle_files):
    dataset = tf.data.TFRecordDataset(str(path))
    return dataset.map(lambda line: {'targets': line})

  source = seqio.FunctionDataSource(dataset_fn, ['train'])
  add_task('t_broken', [''], source)
  with pytest.raises(ValueError, match='t_broken/train must be readable') as e:
    run('t_broken')
  assert '\n' not in str(e.value)


def test_documents_are_texts_without_a_vocabulary(add_task):
  add_task('t_text', ['白日', '黃'], inputs=['上', '下'])
  assert list(cache.documents('t_text', 'train')) == [
    {'inputs': '上', 'targets': '白日'},
    {'inputs': '下', 'targets': '黃'},
  ]


def test_a_mixture_is_resolved_to_tasks_and_rates(add_task):
  for name in ('t_one', 't_two', 't_three'):
    add_task(name, TEXTS)
  try:
    seqio.MixtureRegistry.add(
      't_mix', [('t_one', 1), ('t_two', lambda task: 3)]
    )
    seqio.MixtureRegistry.add('t_all', [('t_mix', 1), ('t_three', 2)])
    assert cache.resolve('t_mix') == [('t_one', 1), ('t_two', 3)]
    # The inner mixture has rate 1, and its tasks get 1/4 and 3/4 of this rate.
    assert dict(cache.resolve('t_all')) == {
      't_one': 0.25,
      't_two': 0.75,
      't_three': 2,
    }
    assert cache.resolve('t_one') == [('t_one', 1.0)]
    assert cache.splits('t_mix') == {
      'train': ['t_one', 't_two'],
      'validation': ['t_one', 't_two'],
    }
    texts = [doc['targets'] for doc in cache.documents('t_mix', 'train')]
    assert texts == TEXTS + TEXTS
  finally:
    seqio.MixtureRegistry.remove('t_mix')
    seqio.MixtureRegistry.remove('t_all')


def test_an_unknown_task_names_the_nearest_ones(add_task, run):
  add_task('t_poems', TEXTS)
  with pytest.raises(ValueError, match="got 't_poem': did you mean t_poems"):
    run('t_poem')


def test_an_unknown_split_names_the_known_ones(add_task):
  add_task('t_split', TEXTS)
  with pytest.raises(ValueError, match="one of train, validation, got 'test'"):
    next(cache.documents('t_split', 'test'))


class Codes(seqio.PassThroughVocabulary):
  """A vocabulary with the attributes of a feature that holds codes."""

  def __init__(self, range, is_block):
    super().__init__(1 << 20)
    self.range, self.is_block = range, is_block


@pytest.fixture
def add_pictures():
  """Returns a function that registers a task of two pictures with captions.

  Each picture has two codes.
  """

  def dataset_fn(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices(
      {
        'inputs': tf.constant([[0, 7], [3, 3]]),
        'targets': tf.constant(['白日', '依山']),
        'row': tf.constant([[0, 1, 0, 0]] * 2),
      }
    )

  def add(**features):
    seqio.TaskRegistry.add(
      'cache_pictures',
      source=seqio.FunctionDataSource(dataset_fn, ['train']),
      preprocessors=[
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos,
      ],
      output_features={
        'inputs': seqio.Feature(Codes('image', True), add_eos=False),
        'targets': seqio.Feature(seqio.ByteVocabulary()),
        **features,
      },
    )

  yield add
  seqio.TaskRegistry.remove('cache_pictures')


def test_codes_are_put_into_their_range_as_a_block(
  run, tmp_path, vocabulary, add_pictures
):
  add_pictures()
  manifest = run('cache_pictures', ranges={'image': 8})
  assert manifest['ids']['image'] == 8 and manifest['counts']['chars'] == 4
  opened = Store(tmp_path / 'cache_pictures/train')
  first = opened.read([0])[0]
  # The 288 text ids are padded to 384, where the codes begin.
  assert first['tokens'].tolist() == [384, 391, *vocabulary.encode('白日'), 1]
  assert first['block_ids'].tolist() == [1, 1, 0, 0, 0]
  assert first['loss_weights'].tolist() == [0, 0, 1, 1, 1]
  assert opened.blocks.tolist() == [[0, 0, 2, 0], [1, 0, 2, 0]]
  assert not verify.verify(tmp_path / 'cache_pictures/train')


def test_a_further_feature_is_kept_with_zero_at_the_end_mark(
  run, tmp_path, add_pictures
):
  row = seqio.PassThroughVocabulary(9)
  add_pictures(row=seqio.Feature(row, add_eos=False))
  run('cache_pictures', ranges={'image': 8})
  first = Store(tmp_path / 'cache_pictures/train').read([0])[0]
  assert first['row'].tolist() == [0, 1, 0, 0, 0]


def test_a_code_out_of_its_range_is_malformed(run, add_pictures):
  add_pictures()
  with pytest.raises(ValueError, match="Codes of the range 'image' must be"):
    run('cache_pictures', ranges={'image': 4})


def test_an_unknown_range_is_refused(run, add_pictures):
  add_pictures()
  with pytest.raises(ValueError, match='got sound: change the name'):
    run('cache_pictures', ranges={'sound': 4})
