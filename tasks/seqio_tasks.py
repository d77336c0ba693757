"""Registers declared tasks with seqio, for seqio.get_mixture_or_task(name)."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from moe.data.records import Feature
from tasks import codes, modules, registry, vocabulary

# Names of the mixtures that `register` has registered with seqio.
_mixtures: set[str] = set()


class DocumentSource(seqio.FunctionDataSource):
  """A seqio source of the documents of a declared task."""

  def __init__(self, task: registry.Task):
    super().__init__(dataset_fn=self._dataset, splits=task.source.splits)
    self.task = task
    self.source = task.source

  def documents(self, split: str) -> Iterator[dict[str, str]]:
    """The documents of a split as Python strings, without TensorFlow.

    Raises:
      ValueError: at once, if the split is unknown or its files cannot be used.
    """
    return self.task.documents(split)

  def _dataset(
    self, split: str, shuffle_files: bool, seed: int | None = None
  ) -> tf.data.Dataset:
    del shuffle_files, seed  # The token store fixes the order.
    # This reads the first document, so that errors of a corpus are raised here.
    # Inside tf.data they would become a page of traceback.
    next(self.documents(split), None)
    return tf.data.Dataset.from_generator(
      lambda: self.documents(split),
      output_signature={
        name: _spec(kinds_of(self.task).get(name))
        for name in self.task.features
      },
    )


def register(
  vocabulary_file: str | os.PathLike | None = None,
  task_modules: Sequence[str] = (),
) -> None:
  """Registers every declared task and mixture with seqio.

  Afterwards `seqio.get_mixture_or_task(name).get_dataset(...)` gives the same
  tokens as a token store with this vocabulary. Another call replaces the
  vocabulary for new datasets; existing ones keep theirs.

  Args:
    vocabulary_file: file of the vocabulary; with None, documents can only be
      read as text.
    task_modules: a user's modules to load first, see `tasks.modules.locate`.

  Raises:
    ValueError: if a module or the vocabulary cannot be used, or if seqio has
      another task or mixture with the name of one of ours.
  """
  modules.load(task_modules)
  tokens = vocabulary.TaskVocabulary(vocabulary_file)
  _forget()
  of_seqio = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  for name in [*registry.TASKS, *registry.MIXTURES]:
    if name in of_seqio:
      raise ValueError(
        f'A task or mixture must have a name of its own, got {name!r}, which'
        ' seqio has already: choose another name.'
      )
  for task in registry.TASKS.values():
    seqio.TaskRegistry.add(
      task.name,
      source=DocumentSource(task),
      preprocessors=[
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos,
      ],
      output_features={
        feature: _feature(feature, kinds_of(task).get(feature), tokens)
        for feature in task.features
      },
      metric_fns=[],
    )
  for name, tasks in registry.MIXTURES.items():
    features = {frozenset(registry.TASKS[task].features) for task in tasks}
    if len(features) == 1:
      rates = registry.RATES.get(name, dict.fromkeys(tasks, _num_chars))
      seqio.MixtureRegistry.add(name, list(rates.items()))
    else:
      seqio.MixtureRegistry.add_provider(name, StoreMixture(name, tasks))
    _mixtures.add(name)


class StoreMixture(seqio.Mixture):
  """A mixture whose tasks have different features, such as text and codes.

  Only token stores of these tasks can be mixed; seqio cannot mix their
  examples.
  """

  def __init__(self, name: str, tasks: Sequence[str]):
    self._members = []
    # seqio refuses tasks with different features. So it gets only one task
    # here, and the property `tasks` returns all of them.
    super().__init__(name, tasks[:1], default_rate=_num_chars)
    self._members = [seqio.TaskRegistry.get(task) for task in tasks]

  @property
  def tasks(self) -> list[seqio.Task]:
    """All tasks of the mixture."""
    return self._members or super().tasks

  def get_rate(self, task: seqio.Task) -> float:
    """The declared rate of a task, or its number of characters and codes."""
    rates = registry.RATES.get(self.name)
    return rates[task.name] if rates else _num_chars(task)

  def get_dataset(self, *args: Any, **kwargs: Any) -> tf.data.Dataset:
    """Raises ValueError, since examples of these tasks cannot be mixed."""
    raise ValueError(
      f'The tasks of {self.name} must have equal features for this, got'
      ' different ones: mix their token stores with run.Data.train.'
    )


class Codes(seqio.PassThroughVocabulary):
  """Takes the place of the vocabulary for a feature that is not text.

  Attributes:
    range: name of the codes' id range, as in `moe.data.records.Feature`.
    is_block: whether all tokens of the feature see each other.
    tokenizer: SHA-256 of the tokenizer that made the codes, or ''.
    grid: (rows, columns) of the codes of a picture, or ().
    array_dtype: dtype of a further array.
    of: the feature that has the tokens of a further array, or ''.
  """

  def __init__(self, kind: Feature):
    # The run decides the size of the range, so this is only an upper bound.
    super().__init__(size=1 << 31)
    self.range, self.is_block = kind.range, kind.is_block
    self.tokenizer, self.grid = kind.tokenizer, kind.grid
    self.array_dtype, self.of = kind.dtype, kind.of


def kinds_of(task: registry.Task) -> Mapping[str, Feature]:
  """Name -> description, for the task's features that are not text."""
  return task.kinds if isinstance(task, codes.CodeTask) else {}


def _spec(kind: Feature | None) -> tf.TensorSpec:
  if kind is None:
    return tf.TensorSpec([], tf.string)
  return tf.TensorSpec(None, _dtype(kind))


def _dtype(kind: Feature) -> tf.DType:
  return tf.int32 if kind.range else tf.as_dtype(kind.dtype)


def _feature(
  name: str, kind: Feature | None, tokens: seqio.Vocabulary
) -> seqio.Feature:
  if kind is None:
    return seqio.Feature(tokens, add_eos=name == 'targets')
  return seqio.Feature(
    Codes(kind), add_eos=False, dtype=_dtype(kind), rank=None
  )


def _forget() -> None:
  """Removes from seqio the tasks and mixtures of an earlier call."""
  for name in _mixtures & {*seqio.MixtureRegistry.names()}:
    seqio.MixtureRegistry.remove(name)
  _mixtures.clear()
  for name in list(seqio.TaskRegistry.names()):
    if isinstance(seqio.TaskRegistry.get(name).source, DocumentSource):
      seqio.TaskRegistry.remove(name)


def _num_chars(task: seqio.Task) -> float:
  return float(registry.TASKS[task.name].num_chars)
