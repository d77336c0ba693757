"""How a corpus becomes a seqio task: a source of records and one function.

A source has `splits` and `records(split)`, which gives dictionaries. A document
function makes text of a record, or None to leave the record out. That is all a
corpus has to say; tokenising, end marks and features are the same for all. A
source that also has `files_of(split)`, names of its files, has its token stores
made again when one of them changes.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import seqio
import tensorflow as tf

from tasks import origin, vocabulary
from tasks.text_files import Record


class Source(Protocol):
  """Where records come from."""

  splits: Sequence[str]

  def records(self, split: str) -> Iterator[Record]:
    """Records of a split in a fixed order; ValueError before the first one."""


class DocumentSource(seqio.FunctionDataSource):
  """Documents of a corpus as a seqio source, and as plain Python strings."""

  def __init__(
    self,
    source: Source,
    features: Sequence[str],
    document_fn: Callable[[Record], Sequence[str] | None],
    module: str,
  ):
    """See `add_text_task` and `add_prefix_task`.

    Args:
      source: of records.
      features: names of the texts of a document.
      document_fn: record -> as many texts, or None to leave the record out.
      module: which module the task was written in.
    """
    super().__init__(dataset_fn=self._dataset, splits=source.splits)
    self.source = source
    self._features = tuple(features)
    self._document_fn = document_fn
    self._module = module

  def origin(self, split: str) -> dict:
    """What a split's documents are made of, see `tasks.origin`."""
    files_of = getattr(self.source, 'files_of', lambda split: [])
    modules = self._module, origin.type_module(self.source), __name__
    return origin.record([*files_of(split), *origin.code(*modules)])

  def documents(self, split: str) -> Iterator[dict[str, str]]:
    """Texts of a split by feature, without TensorFlow and without tokenising.

    Raises:
      ValueError: at once if the split is unknown or its files are not fit.
    """
    return self._documents(self.source.records(split))

  def _documents(self, records) -> Iterator[dict[str, str]]:
    for record in records:
      texts = self._document_fn(record)
      if texts is not None:
        yield dict(zip(self._features, texts, strict=True))

  def _dataset(self, split, shuffle_files, seed=None) -> tf.data.Dataset:
    del shuffle_files, seed  # The token store fixes the order.
    # What is wrong with a corpus is told here: inside tf.data the same error is
    # a page of traceback.
    next(self.documents(split), None)
    return tf.data.Dataset.from_generator(
      lambda: self.documents(split),
      output_signature={
        name: tf.TensorSpec([], tf.string) for name in self._features
      },
    )


def add_text_task(
  name: str,
  source: Source,
  document_fn: Callable[[Record], str | None],
  convert: str | None = None,
):
  """Registers a task whose documents are scored whole.

  Args:
    name: of the task.
    source: of records.
    document_fn: record -> the document, or None to leave the record out.
    convert: an OpenCC conversion such as 's2t' for the text, which loses
      information; None keeps the script of the source.
  """

  def texts_fn(record):
    document = document_fn(record)
    return None if document is None else (document,)

  module = origin.type_module(document_fn)
  _add(name, source, ['targets'], texts_fn, convert, module)


def add_prefix_task(
  name: str,
  source: Source,
  pair_fn: Callable[[Record], tuple[str, str] | None],
  convert: str | None = None,
):
  """Registers a task whose documents start with a part that is not scored.

  Args:
    name: of the task.
    source: of records.
    pair_fn: record -> (given text, text to write), or None to leave it out. The
      document is the one after the other: the given text ends in its own
      separator.
    convert: as in `add_text_task`.
  """
  module = origin.type_module(pair_fn)
  _add(name, source, ['inputs', 'targets'], pair_fn, convert, module)


def add_mixture(name: str, tasks: Sequence[str]):
  """Registers a mixture of tasks, rates by their sizes in characters."""
  seqio.MixtureRegistry.add(name, list(tasks), default_rate=num_chars)


@functools.cache
def num_chars(task: seqio.Task) -> float:
  """Unicode code points of a task's training documents; reads all of them."""
  documents = task.source.documents('train')
  return float(sum(len(text) for doc in documents for text in doc.values()))


def _add(name, source, features, document_fn, convert, module):
  if convert:
    document_fn = _converted(document_fn, convert)
  seqio.TaskRegistry.add(
    name,
    source=DocumentSource(source, features, document_fn, module),
    preprocessors=[
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos,
    ],
    output_features={
      feature: seqio.Feature(vocabulary.LATE, add_eos=feature == 'targets')
      for feature in features
    },
    metric_fns=[],
  )


def _converted(document_fn, convert: str):
  """A document function whose texts are put into another script."""

  @functools.cache
  def converter():
    import opencc  # Only tasks that ask for a conversion need it.

    return opencc.OpenCC(convert)

  def converted_fn(record):
    texts = document_fn(record)
    return texts and tuple(converter().convert(text) for text in texts)

  return converted_fn
