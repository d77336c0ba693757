"""Seqio can use the project's vocabulary through `TaskVocabulary`."""

import pytest

pytest.importorskip('seqio')

from moe.modalities.text import train_vocabulary  # noqa: E402
from tasks import vocabulary  # noqa: E402

TEXT = '春眠不覺曉，處處聞啼鳥。 \n夜來風雨聲，\u2581花落知多少。'


@pytest.fixture(scope='module')
def model_path(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'vocabulary.model'
  train_vocabulary([TEXT] * 3, 300, path, model_type='char')
  return path


def test_no_vocabulary_is_one_clear_error():
  with pytest.raises(ValueError, match=r'got none: call tasks\.seqio_tasks'):
    vocabulary.TaskVocabulary().vocab_size  # noqa: B018


def test_a_missing_model_is_an_error_at_once(tmp_path):
  with pytest.raises(ValueError, match=r'none\.model must be a file'):
    vocabulary.TaskVocabulary(tmp_path / 'none.model')


def test_pad_eos_and_unk_are_0_1_and_2():
  empty = vocabulary.TaskVocabulary()
  ids = empty.pad_id, empty.eos_id, empty.unk_id, empty.bos_id
  assert ids == (0, 1, 2, 0)


def test_every_text_is_restored_by_python_and_by_tensorflow(model_path):
  loaded = vocabulary.TaskVocabulary(model_path)
  for text in (TEXT, '', '𠮷🀄 ，\u2581\n', 'half ａ b'):
    ids = loaded.encode(text)
    assert loaded.decode(ids) == text
    assert loaded.decode([*ids, 1, 5, 5]) == text
    assert loaded.encode_tf(text).numpy().tolist() == ids
    assert loaded.decode_tf(loaded.encode_tf(text)).numpy().decode() == text
