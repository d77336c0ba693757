import pytest
import seqio

from moe.modalities.vocabulary import train_vocabulary
from tasks import registry, text_files, vocabulary

TEXT = '春眠不覺曉，處處聞啼鳥。 \n夜來風雨聲，\u2581花落知多少。'


@pytest.fixture(scope='module')
def model_path(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'vocabulary.model'
  train_vocabulary([TEXT] * 3, 300, path, model_type='char')
  return path


@pytest.fixture
def late(monkeypatch):
  """The project's vocabulary, with no model set."""
  monkeypatch.setattr(vocabulary.LATE, '_model', None)
  return vocabulary.LATE


@pytest.fixture
def task(tmp_path):
  """A task of one document."""
  path = tmp_path / 'a.txt'
  path.write_text(TEXT.replace('\n', '\\n') + '\n', 'utf-8')
  source = text_files.plain_text({'train': path})
  registry.add_text_task('one_document', source, lambda record: record['text'])
  yield seqio.TaskRegistry.get('one_document')
  seqio.TaskRegistry.remove('one_document')


def dataset(task):
  return task.get_dataset(sequence_length=None, split='train', shuffle=False)


def test_no_vocabulary_is_one_clear_error(late, task):
  with pytest.raises(ValueError, match='A vocabulary must be set'):
    dataset(task)
  with pytest.raises(ValueError, match=r'tasks\.vocabulary\.set_path'):
    late.vocab_size  # noqa: B018


def test_a_missing_model_is_an_error_when_it_is_set(late, tmp_path):
  with pytest.raises(ValueError, match=r'none\.model must be a file'):
    vocabulary.set_path(tmp_path / 'none.model')


def test_pad_eos_and_unk_are_0_1_and_2(late):
  assert (late.pad_id, late.eos_id, late.unk_id, late.bos_id) == (0, 1, 2, 0)


def test_every_text_comes_back_from_python_and_tensorflow(late, model_path):
  vocabulary.set_path(model_path)
  for text in (TEXT, '', '𠮷🀄 ，\u2581\n', 'half ａ b'):
    ids = late.encode(text)
    assert late.decode(ids) == text
    assert late.decode([*ids, 1, 5, 5]) == text
    assert late.encode_tf(text).numpy().tolist() == ids
    assert late.decode_tf(late.encode_tf(text)).numpy().decode() == text


def test_a_task_tokenises_with_the_model_and_ends_in_the_end_mark(
  late, task, model_path
):
  vocabulary.set_path(model_path)
  (example,) = dataset(task).as_numpy_iterator()
  assert set(example) == {'targets', 'targets_pretokenized'}
  assert example['targets_pretokenized'].decode() == TEXT
  assert example['targets'].dtype == 'int32'
  assert example['targets'].tolist() == [*late.encode(TEXT), 1]


def test_a_dataset_keeps_the_model_it_was_built_with(
  late, task, model_path, tmp_path
):
  vocabulary.set_path(model_path)
  built = dataset(task)
  other = tmp_path / 'other.model'
  train_vocabulary(['花 落'], 270, other, model_type='char')
  ids = late.encode(TEXT)
  vocabulary.set_path(other)
  (example,) = built.as_numpy_iterator()
  assert late.encode(TEXT) != ids
  assert example['targets'].tolist() == [*ids, 1]
