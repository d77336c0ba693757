"""How a corpus becomes a seqio task: a source of records and one function.

A source has `splits` and `records(split)`, which gives dictionaries. A document
function makes text of a record, or None to leave the record out. A corpus needs
nothing else; tokenising, end marks and features are the same for all. A source
may also have `files_of(split)`, which gives the names of its files: its token
stores are then made again when a file changes.
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
    """Records of a split in a fixed order.

    Raises:
      ValueError: before the first record, if the split cannot be read.
    """


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
      document_fn: record -> a text for each feature, or None to leave the
        record out.
      module: name of the module that defines the task.
    """
    super().__init__(dataset_fn=self._dataset, splits=source.splits)
    self.source = source
    self._features = tuple(features)
    self._document_fn = document_fn
    self._module = module

  def origin(self, split: str) -> dict:
    """What the documents of a split are made of, see `tasks.origin`."""
    files_of = getattr(self.source, 'files_of', lambda split: [])
    modules = self._module, origin.type_module(self.source), __name__
    return origin.record([*files_of(split), *origin.code(*modules)])

  def documents(self, split: str) -> Iterator[dict[str, str]]:
    """Texts of a split by feature, without TensorFlow and without tokenising.

    Raises:
      ValueError: at once if the split is unknown or its files are not fit.
    """
    return self._documents(self.source.records(split))

  def _documents(self, records: Iterator[Record]) -> Iterator[dict[str, str]]:
    for record in records:
      texts = self._document_fn(record)
      if texts is not None:
        yield dict(zip(self._features, texts, strict=True))

  def _dataset(
    self, split: str, shuffle_files: bool, seed: int | None = None
  ) -> tf.data.Dataset:
    del shuffle_files, seed  # The token store fixes the order.
    # Errors of a corpus are raised here: inside tf.data they become a page of
    # traceback.
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
  """Registers a task whose documents are scored as a whole.

  Args:
    name: of the task.
    source: of records.
    document_fn: record -> the document, or None to leave the record out.
    convert: an OpenCC conversion such as 's2t' for the text, which loses
      information; None keeps the script of the source.
  """

  def texts_fn(record: Record) -> tuple[str] | None:
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
    pair_fn: record -> (given text, text to write), or None to leave the record
      out. The document is one text after the other, so the given text must end
      in a separator.
    convert: as in `add_text_task`.
  """
  module = origin.type_module(pair_fn)
  _add(name, source, ['inputs', 'targets'], pair_fn, convert, module)


def add_mixture(name: str, tasks: Sequence[str]):
  """Registers a mixture of tasks whose rates are their sizes in characters."""
  seqio.MixtureRegistry.add(name, list(tasks), default_rate=num_chars)


@functools.cache
def num_chars(task: seqio.Task) -> float:
  """Unicode code points of a task's training documents; reads all of them."""
  documents = task.source.documents('train')
  return float(sum(len(text) for doc in documents for text in doc.values()))


def _add(
  name: str,
  source: Source,
  features: Sequence[str],
  document_fn: Callable[[Record], Sequence[str] | None],
  convert: str | None,
  module: str,
) -> None:
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


def _converted(
  document_fn: Callable[[Record], Sequence[str] | None], convert: str
) -> Callable[[Record], tuple[str, ...] | None]:
  """A document function that puts its texts into another script."""

  @functools.cache
  def converter():
    import opencc  # Only tasks with a conversion need it.

    return opencc.OpenCC(convert)

  def converted_fn(record: Record) -> tuple[str, ...] | None:
    texts = document_fn(record)
    return texts and tuple(converter().convert(text) for text in texts)

  return converted_fn
