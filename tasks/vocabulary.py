"""Adapts the project's vocabulary to the interface of seqio.

`moe.modalities.text` is the project's only tokeniser, here and in token stores.
The tokeniser of tf_text is not used, since it does not keep U+2581, and since
sampling must not depend on TensorFlow. Our tokeniser runs in Python, outside of
TensorFlow's graph.
"""

import os
from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

from moe.modalities.ids import EOS, PAD, UNK
from moe.modalities.text import Vocabulary


class TaskVocabulary(seqio.Vocabulary):
  """A vocabulary for seqio; without a model, tasks can only be read as text."""

  def __init__(self, path: str | os.PathLike | None = None):
    """Loads the model.

    Args:
      path: a model that `moe.modalities.text.Vocabulary` accepts; with
        None, the vocabulary is empty and cannot tokenise.

    Raises:
      ValueError: if the file is missing or cannot be used.
    """
    super().__init__(extra_ids=0)
    self._model = None if path is None else Vocabulary(path)

  @property
  def model(self) -> Vocabulary:
    """The vocabulary that tokenises texts.

    Raises:
      ValueError: if there is none.
    """
    if self._model is None:
      raise ValueError(
        'A task is tokenised with a vocabulary, got none: call'
        " tasks.seqio_tasks.register('.../vocabulary.model') with one that"
        ' `python -m launch.data vocabulary` made.'
      )
    return self._model

  @property
  def bos_id(self) -> int:
    """The padding id; as in t5x, a model reads it before each document."""
    return PAD

  @property
  def eos_id(self) -> int:
    """The id of the end mark."""
    return EOS

  @property
  def unk_id(self) -> int:
    """The id of unknown pieces; with byte fallback, no text contains it."""
    return UNK

  @property
  def _base_vocab_size(self) -> int:
    return self.model.size

  def _encode(self, s: str) -> Sequence[int]:
    return self.model.encode(s)

  def _decode(self, ids: Sequence[int]) -> str:
    return self.model.decode(list(ids))

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    model = self.model

    def encode(text: bytes | np.ndarray) -> np.ndarray:
      # The text is bytes inside tf.data, and a NumPy array elsewhere.
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
