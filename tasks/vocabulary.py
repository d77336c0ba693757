"""The vocabulary of every text task, which is set when it is known.

Importing this package declares the tasks, before anybody has said which
SentencePiece model to use; the model may even be trained on their text. So the
features of the tasks hold a vocabulary whose model is set later: call
`set_path`, then read a task. `moe.modalities.vocabulary`, the one tokeniser of
the project, does all tokenising: the tokeniser of tf_text does not keep U+2581
and is not the code that sampling uses. It runs in Python, offline, when a store
is made.
"""

import os
from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

from moe.modalities import vocabulary


class LateVocabulary(seqio.Vocabulary):
  """A seqio vocabulary whose model is set after the tasks that use it."""

  def __init__(self):
    super().__init__(extra_ids=0)
    self._model = None

  def load(self, path: str | os.PathLike):
    """Uses the model at `path` from now on; ValueError if it cannot be used."""
    self._model = vocabulary.Vocabulary(path)

  @property
  def model(self) -> vocabulary.Vocabulary:
    """The model that is set.

    Raises:
      ValueError: if no model is set.
    """
    if self._model is None:
      raise ValueError(
        'A vocabulary must be set before a task is tokenised, got none: call'
        " tasks.vocabulary.set_path('.../vocabulary.model'), which"
        ' `python -m launch.data vocabulary` makes.'
      )
    return self._model

  @property
  def bos_id(self) -> int:
    """The padding id, with which every document starts, as in t5x."""
    return vocabulary.PAD

  @property
  def eos_id(self) -> int:
    """The id of the end mark."""
    return vocabulary.EOS

  @property
  def unk_id(self) -> int:
    """The id of unknown pieces, which byte fallback leaves unused."""
    return vocabulary.UNK

  @property
  def _base_vocab_size(self) -> int:
    return self.model.size

  def _encode(self, s: str) -> Sequence[int]:
    return self.model.encode(s)

  def _decode(self, ids: Sequence[int]) -> str:
    return self.model.decode(list(ids))

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    # Read now, so that a dataset keeps the model that it was built with.
    model = self.model

    def encode(text: bytes | np.ndarray) -> np.ndarray:
      # The text is bytes inside of tf.data and an array outside of it.
      text = text if isinstance(text, bytes) else text.item()
      return np.array(model.encode(text.decode('utf-8')), np.int32)

    s = tf.convert_to_tensor(s, tf.string)
    ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
    ids.set_shape([None])
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    model = self.model
    text = tf.numpy_function(model.decode, [ids], tf.string, stateful=False)
    text.set_shape([])
    return text


LATE = LateVocabulary()


def set_path(path: str | os.PathLike):
  """Makes every task tokenise with the SentencePiece model at `path`.

  Args:
    path: a model that `moe.modalities.vocabulary.Vocabulary` accepts.

  Raises:
    ValueError: if the file is missing or cannot be used.
  """
  LATE.load(path)
