"""Declares tasks; a task is a source of records and one function.

A source has `splits` and `records(split)`, which gives dictionaries. A document
function turns a record into text; it returns None to leave the record out. A
corpus needs no other code, since tokenising and end marks are the same for all
corpora. A source may also have `files_of(split)`, which gives the names of its
files. Then its token stores are made again when a file changes. If it leaves
records out, `left_out(split)` may give reason -> number, for the manifest.

This module does not use seqio and TensorFlow, which take half a minute to
import on a slow machine. `tasks.seqio_tasks` registers the tasks with seqio.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from tasks.splits import HELD_OUT_PERCENT
from tasks.text_files import LineSource, Record, split_of


class RecordSource(Protocol):
  """An object that gives the records of a task."""

  splits: Sequence[str]

  def records(self, split: str) -> Iterator[Record]:
    """The records of a split, in a fixed order.

    Raises:
      ValueError: at once, before the first record, if the split cannot be read.
    """


@dataclasses.dataclass(eq=False)
class Task:
  """A declared task.

  Attributes:
    name: a name that no other task or mixture has.
    source: the source of the records.
    features: names of the texts of a document.
    document_fn: record -> a text for each feature, or None to leave the record
      out.
    modules: names of the modules that the documents depend on. The first module
      defines the document function.
  """

  name: str
  source: RecordSource
  features: tuple[str, ...]
  document_fn: Callable[[Record], Sequence[str] | None]
  modules: list[str]

  def documents(self, split: str) -> Iterator[dict[str, str]]:
    """The documents of a split, each as feature -> text before tokenising.

    Raises:
      ValueError: at once, if the split is unknown or its files cannot be used.
    """
    return self._documents(self.source.records(split))

  def _documents(self, records: Iterator[Record]) -> Iterator[dict[str, str]]:
    for record in records:
      texts = self.document_fn(record)
      if texts is not None:
        yield dict(zip(self.features, texts, strict=True))

  @functools.cached_property
  def num_chars(self) -> int:
    """Number of characters and codes of all training documents; reads them."""
    documents = self.documents('train')
    return sum(
      len(doc[name])
      for doc in documents
      for name in ('inputs', 'targets')
      if name in doc
    )


# Name -> task, and name of a mixture -> names of its tasks, as declared so far.
TASKS: dict[str, Task] = {}
MIXTURES: dict[str, tuple[str, ...]] = {}
# Name of a mixture with rates of its own -> task -> rate.
RATES: dict[str, dict[str, float]] = {}


def add_text_task(
  name: str,
  source: RecordSource,
  document_fn: Callable[[Record], str | None],
  convert: str | None = None,
) -> None:
  """Declares a task in which every token of a document is scored.

  Args:
    name: the task's name.
    source: gives the records.
    document_fn: record -> the document, or None to leave the record out.
    convert: an OpenCC conversion of the text, such as 's2t'; None keeps the
      script of the source. A conversion loses information.

  Raises:
    ValueError: if the name is taken.
  """

  def texts_fn(record: Record) -> tuple[str] | None:
    document = document_fn(record)
    return None if document is None else (document,)

  module = _module_of(document_fn)
  _add(name, source, ('targets',), texts_fn, convert, module)


def add_prefix_task(
  name: str,
  source: RecordSource,
  pair_fn: Callable[[Record], tuple[str, str] | None],
  convert: str | None = None,
) -> None:
  """Declares a task whose documents start with a prompt, which is not scored.

  Args:
    name: the task's name.
    source: gives the records.
    pair_fn: record -> (prompt, answer), or None to leave the record out. The
      document joins the two texts, so the prompt must end in a separator.
    convert: as in `add_text_task`.

  Raises:
    ValueError: if the name is taken.
  """
  module = _module_of(pair_fn)
  _add(name, source, ('inputs', 'targets'), pair_fn, convert, module)


def add_mixture(
  name: str, tasks: Sequence[str], rates: Sequence[float] = ()
) -> None:
  """Declares a mixture.

  Args:
    name: the mixture's name.
    tasks: names of its tasks.
    rates: how many rows of a batch come from each task, relative to the others.
      With (), the rate of a task is its size in characters, so that every
      document is seen equally often.

  Raises:
    ValueError: if the name is taken, if a task is not declared, or if a task
      has no rate above 0.
  """
  _check_new(name)
  for task in tasks:
    if task not in TASKS:
      raise ValueError(
        f'The mixture {name!r} must consist of declared tasks, got {task!r}:'
        ' declare that task before the mixture.'
      )
  if rates and (len(rates) != len(tasks) or min(rates) <= 0):
    raise ValueError(
      f'The mixture {name!r} must have a rate above 0 for each of its'
      f' {len(tasks)} tasks, got {tuple(rates)}: give one of each.'
    )
  MIXTURES[name] = tuple(tasks)
  RATES.pop(name, None)
  if rates:
    RATES[name] = dict(zip(tasks, map(float, rates), strict=True))


def splits_of(mixture: str) -> dict[str, list[str]]:
  """Split -> names of the tasks that have it, for a declared mixture."""
  found = {}
  for task in MIXTURES[mixture]:
    for split in TASKS[task].source.splits:
      found.setdefault(split, []).append(task)
  return found


def allow_malformed(name: str, share: float) -> None:
  """Sets the share of lines that may be malformed in the files of a task.

  A task without a `LineSource` is left unchanged.

  Args:
    name: name of a task or mixture. An undeclared name is ignored.
    share: the largest share of malformed lines of a file.
  """
  for task_name in MIXTURES.get(name, (name,)):
    task = TASKS.get(task_name)
    if task is not None and isinstance(task.source, LineSource):
      source = dataclasses.replace(task.source, max_bad_fraction=share)
      TASKS[task_name] = dataclasses.replace(task, source=source)


def no_documents(name: str, split: str) -> ValueError:
  """The error for a split that has no document."""
  hint = 'check its files'
  source = TASKS[name].source if name in TASKS else None
  if source is not None:
    num_records = sum(1 for _ in source.records(split))
    if num_records:
      hint = f'its document function leaves out all {num_records} records'
    elif getattr(source, 'is_split_by_record', False):
      num_records = sum(
        1 for other in source.splits for _ in source.records(other)
      )
      rule = (
        f'a hash of each record holds out {HELD_OUT_PERCENT}% of them'
        if source.split_fn is split_of
        else 'its split function says where each record goes'
      )
      hint = (
        f'{rule}, and none of these {num_records} fell there; add records, or'
        " name a file for each split: {'train': 'A', 'validation': 'B'}"
      )
  return ValueError(
    f'{name}/{split} must have at least one document, got none: {hint}.'
  )


def _add(
  name: str,
  source: RecordSource,
  features: tuple[str, ...],
  document_fn: Callable[[Record], Sequence[str] | None],
  convert: str | None,
  module: str,
) -> None:
  _check_new(name)
  if convert:
    document_fn = _converted(document_fn, convert)
  modules = [module, type(source).__module__, __name__]
  TASKS[name] = Task(name, source, features, document_fn, modules)


def _check_new(name: str) -> None:
  if name in TASKS:
    raise ValueError(
      f'A task or mixture must have a name of its own, got {name!r}, which a'
      f' task of {TASKS[name].modules[0]} has: choose another name.'
    )
  if name in MIXTURES:
    raise ValueError(
      f'A task or mixture must have a name of its own, got {name!r}, which a'
      ' mixture has: choose another name.'
    )


def _module_of(value: Any) -> str:
  """Name of the module that defines a function; '' if that is not known."""
  name = getattr(value, '__module__', None)
  return name if isinstance(name, str) else ''


def _converted(
  document_fn: Callable[[Record], Sequence[str] | None], convert: str
) -> Callable[[Record], tuple[str, ...] | None]:
  """Makes a document function that converts its texts to another script."""

  @functools.cache
  def converter():
    import opencc  # Imported here, since only tasks with a conversion need it.

    return opencc.OpenCC(convert)

  def converted_fn(record: Record) -> tuple[str, ...] | None:
    texts = document_fn(record)
    return texts and tuple(converter().convert(text) for text in texts)

  return converted_fn
