"""Checks a run before it starts work that takes long."""

import logging
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from moe import axes, bounds
from moe.checkpoint import listing, save
from moe.data.store import VOCABULARY, Store, file_sha256
from moe.modalities.ids import IdSpace, of_manifest, shared, text_room
from moe.modalities.text import MIN_SIZE, Vocabulary
from moe.parallel.shardings import path_name
from moe.runs.run import Run, router_of
from moe.train.program import Program

_logger = logging.getLogger(__name__)

# A warning about changed settings lists at most this many of them.
MAX_DIFFERENCES = 8
# A checkpoint records these settings. A resumed run must have the same values.
ORDER = ('seed', 'batch_size', 'sequence_length')
DATA_HASHES = {
  'ids_sha256': 'the id space of TASK',
  'vocabulary_sha256': 'the vocabulary of TASK',
  'manifest_hash': 'the documents of TASK',
}


def open_workdir(workdir: str) -> None:
  """Creates the work directory and checks that it is writable.

  Raises:
    ValueError: if the directory is not writable, or if TensorStore cannot write
      into a directory of this name.
  """
  path = os.path.abspath(workdir)
  # TensorStore reads a backslash as a slash, and accepts only names in UTF-8.
  if '\\' in path or path != path.encode('utf-8', 'ignore').decode('utf-8'):
    raise ValueError(
      f'--workdir={ascii(workdir)} must be UTF-8 without a backslash, since'
      ' checkpoints cannot be written to other names: choose another one.'
    )
  try:
    os.makedirs(workdir, exist_ok=True)
    # The name is unique, since processes of other hosts check the same
    # directory.
    with tempfile.NamedTemporaryFile(prefix='.probe-', dir=workdir) as f:
      f.write(b'x')
  except OSError as error:
    raise ValueError(
      f'--workdir={workdir} must be a writable directory'
      f' ({error.strerror}): choose another one.'
    ) from error


def check_names(run: Run, workdir: str, differences: Sequence[str]) -> None:
  """Checks the files that a run names, and its work directory.

  The tasks are checked later: `build.find_data` checks all of them before it
  tokenises the first.

  Raises:
    ValueError: if a file is missing or does not fit, if VOCAB_SIZE is too small
      for a new vocabulary, or if the run in the work directory cannot resume
      with these settings.
  """
  if run.data.vocabulary:
    check_vocabulary(run.data.vocabulary, workdir, run.model.vocab_size)
  else:
    others = dict(run.data.ranges)
    room = text_room(run.model.vocab_size, others)
    least = MIN_SIZE + run.model.vocab_size - room
    meaning = 'a vocabulary is trained, with all bytes and marks'
    bounds.at_least(least, 'VOCAB_SIZE', run.model.vocab_size, meaning)
  if run.initial.checkpoint:
    origin_of(run)
  check_resumed(run, workdir, differences)


def check_resumed(run: Any, workdir: str, differences: Sequence[str]) -> None:
  """Compares a run of any kind with the checkpoints in its work directory.

  Differences in the configuration that raise no error are only logged.

  Raises:
    ValueError: if the order of the data would change, or the checkpoints have
      more steps than TRAIN_STEPS.
  """
  checkpoint_dir = listing.steps_dir(workdir)
  steps = listing.steps(checkpoint_dir)
  if not steps:
    return
  meta = listing.read_meta(os.path.join(checkpoint_dir, str(steps[-1])))
  check_saved(meta, run_identity(run), workdir)
  if run.settings.train_steps < steps[-1]:
    raise ValueError(
      f'TRAIN_STEPS={run.settings.train_steps} must be at least the'
      f' {steps[-1]} steps that {workdir} was trained for: raise it, or choose'
      ' another --workdir.'
    )
  if differences:
    more = len(differences) - MAX_DIFFERENCES
    shown = list(differences[:MAX_DIFFERENCES]) + [f'{more} more'] * (more > 0)
    _logger.info(
      f'warning: {workdir} resumes with settings that differ from its'
      f' config.gin: {"; ".join(shown)}'
    )


def run_identity(run: Any) -> dict[str, int]:
  """The values of the settings that determine the order of the data."""
  numbers = {**vars(run.settings), **vars(run.data)}
  return {key: numbers[key] for key in ORDER if key in numbers}


def check_vocabulary(path: str, workdir: str, vocab_size: int) -> None:
  """Raises ValueError if a vocabulary is damaged or does not fit the run.

  Args:
    path: file of the vocabulary.
    workdir: directory of the run. If it has a copy of the vocabulary, the copy
      must be equal.
    vocab_size: rows in the model's embedding table. The vocabulary must not
      have more pieces.
  """
  vocabulary = Vocabulary(path)
  if vocabulary.size > vocab_size:
    raise ValueError(
      f'VOCAB_SIZE={vocab_size} must be at least the {vocabulary.size} pieces'
      f' of {path}: raise it, or choose another VOCABULARY.'
    )
  copy = os.path.join(workdir, VOCABULARY)
  if os.path.exists(copy) and file_sha256(copy) != vocabulary.sha256:
    raise ValueError(
      f'{copy} must be the vocabulary of the data, {path}, but differs: choose'
      ' another --workdir, or the first VOCABULARY of this run.'
    )


def check_ids(space: IdSpace, vocab_size: int) -> None:
  """Raises ValueError unless the embedding table has a row for every id.

  Args:
    space: id space of the data.
    vocab_size: rows in the model's embedding table.
  """
  if space.size > vocab_size:
    raise ValueError(
      f'VOCAB_SIZE={vocab_size} must be at least {space.size}, the end of the'
      f' ids {space}: raise it, or make a range smaller.'
    )


def check_ranges(space: IdSpace, model: IdSpace | None) -> None:
  """Raises ValueError unless data and model have equal id ranges.

  Args:
    space: id space of the data.
    model: id space of a model with a softmax for each range; None for a model
      with one softmax.
  """
  if model is None:
    return
  wanted = {name: size for name, size in space.sizes.items() if name != 'text'}
  got = {name: size for name, size in model.sizes.items() if name != 'text'}
  if wanted != got:
    raise ValueError(
      f'decoder.Decoder.ranges must be those of run.Data.ranges, got {got} and'
      f' {wanted}: set RANGES.'
    )
  if space.size != model.size:
    raise ValueError(
      f'VOCAB_SIZE={model.size} must be {space.size}, the end of the ids'
      f' {space}, since each range has a softmax of its own: set it.'
    )


def check_tokenizer(space: IdSpace, path: str) -> None:
  """Raises ValueError unless a tokenizer is the one that made the image codes.

  Args:
    space: id space of the data, which names the right tokenizer.
    path: file of a frozen tokenizer; '' for none.
  """
  wanted = dict(space.tokenizers).get('image', '')
  if path and not os.path.isfile(path):
    raise ValueError(
      f'IMAGE_TOKENIZER={path} must be the file of a frozen tokenizer, got'
      ' nothing there: `python -m launch.images encode` writes one beside the'
      ' codes.'
    )
  found = file_sha256(path) if path else ''
  if wanted != found:
    show = lambda sha256: sha256[:12] or 'none'
    raise ValueError(
      'IMAGE_TOKENIZER must be the tokenizer that made the image codes of TASK'
      f' (SHA-256 {show(wanted)}), got {show(found)}: name the file beside the'
      ' codes.'
    )


def check_evaluation(
  space: IdSpace, task: str, stores: Iterable[Store]
) -> None:
  """Raises ValueError unless held-out and training data can share ids.

  Args:
    space: id space of the training data.
    task: name of the evaluation task.
    stores: its token stores.
  """
  try:
    shared([space, *(of_manifest(store.manifest) for store in stores)])
  except ValueError as error:
    raise ValueError(
      f'{task} of EVAL_TASKS must have the ids of TASK. {error}'
    ) from error


def check_saved(
  saved: dict[str, Any], wanted: dict[str, Any], workdir: str
) -> None:
  """Raises ValueError unless a run resumes with the same data and order.

  Args:
    saved: metadata of a checkpoint. A missing key counts as equal, because
      earlier versions did not save all keys.
    wanted: the present values; only the keys in `ORDER` and `DATA_HASHES` are
      compared.
    workdir: directory of the run.
  """
  for key, value in wanted.items():
    before = saved.get(key, value)
    if before == value:
      continue
    if key in DATA_HASHES:
      raise ValueError(
        f'{DATA_HASHES[key]} must be the same as before in {workdir} (SHA-256'
        f' {before[:12]}), got {value[:12]}: restore the old corpus, or choose'
        ' another --workdir.'
      )
    if key in ORDER:
      macro = key.upper()
      raise ValueError(
        f'{macro}={value} must be {before}, the value at the start of'
        f' {workdir}: another value changes the order of the data and the count'
        f' of tokens. Set --gin.{macro}={before}, or choose another --workdir.'
      )


def warn_of_held_out(
  saved: dict[str, Any], held_out: dict[str, str], workdir: str
) -> None:
  """Warns if a run resumes with other held-out documents.

  Args:
    saved: metadata of the newest checkpoint.
    held_out: task -> hash of its present documents. Checkpoints are ranked by
      the first task.
    workdir: directory of the run.
  """
  before = saved.get('held_out')
  if before is None:  # Earlier versions did not save these hashes.
    return
  for task in held_out.keys() & before.keys():
    if held_out[task] != before[task]:
      _logger.info(
        f'warning: the held-out documents of {task} have changed since step'
        f' {saved["step"]:,} of {workdir}: later scores are not comparable with'
        ' earlier ones, and only checkpoints with scores on the new documents'
        ' are ranked.'
      )
  first, first_before = (
    next(iter(tasks), None) for tasks in (held_out, before)
  )
  if first != first_before:
    _logger.info(
      f'warning: checkpoints of {workdir} were ranked by {first_before} up to'
      f' step {saved["step"]:,} and are ranked by {first} from now on: only'
      ' checkpoints with a score on that task are ranked.'
    )


def origin_of(run: Run) -> dict[str, Any]:
  """The metadata of INITIAL_CHECKPOINT.

  Raises:
    ValueError: if there is no such checkpoint.
  """
  try:
    directory, step = listing.locate(run.initial.checkpoint)
  except ValueError as error:
    raise ValueError(f'INITIAL_CHECKPOINT: {error}') from error
  if step is None:
    step = listing.steps(directory)[-1]
  return listing.read_meta(directory / str(step))


def check_origin(
  run: Run, program: Program, hashes: dict[str, str | None]
) -> None:
  """Raises ValueError if rows of initial embeddings belong to other tokens.

  Args:
    run: the run. Without INITIAL_CHECKPOINT there is nothing to check.
    program: the program of the run.
    hashes: hashes of the data: `vocabulary_sha256`, and `ids_sha256` if there
      are other ids than text. For text the vocabulary defines all ids.
  """
  if not run.initial.checkpoint:
    return
  saved, anew = origin_of(run), _first_kept_table(run, program)
  if anew is None:
    return
  for key, (what, setting) in _ROWS_MEAN.items():
    ours = hashes.get(key)
    theirs = saved.get(key, ours)
    if None not in (ours, theirs) and ours != theirs:
      raise ValueError(
        f'INITIAL_CHECKPOINT={run.initial.checkpoint} must be of {what} of the'
        f' data (SHA-256 {ours[:12]}), got {theirs[:12]}: set {setting} of its'
        f" run, or start the embedding anew with ('{anew}', None) in"
        ' INITIAL_ASSIGNMENT.'
      )


# The hashes that define the meaning of the rows of an embedding table: key of
# the hash -> (name of what is hashed, setting to change if the hashes differ).
# The error message shows both.
_ROWS_MEAN = {
  'vocabulary_sha256': ('the vocabulary', 'VOCABULARY to the vocabulary.model'),
  'ids_sha256': ('the id space', 'run.Data.ranges to those'),
}


def _first_kept_table(run: Run, program: Program) -> str | None:
  """Path of the first table without an entry in INITIAL_ASSIGNMENT.

  A table has the axis `VOCAB`. The result is None if all tables have entries.
  """
  by_path = jax.tree_util.tree_leaves_with_path(
    program.logical_axes, is_leaf=lambda a: isinstance(a, tuple)
  )
  for key, names in by_path:
    path = path_name(key)
    is_assigned = any(re.fullmatch(p, path) for p, _ in run.initial.assignment)
    if axes.VOCAB in names and not is_assigned:
      return path
  return None


def check_disk(program: Program, steps_dir: str) -> None:
  """Raises ValueError unless two checkpoints can be written to the disk."""
  leaves = jax.tree.leaves(program.abstract)
  num_bytes = sum(a.size * a.dtype.itemsize for a in leaves)
  save.check_writable(steps_dir, 2 * num_bytes)


def warn_of_router(run: Run) -> None:
  """Warns if the experts of a token depend on later tokens."""
  router = router_of(run)
  if router is None:
    return
  name = type(router).__name__
  if not router.is_causal:
    _logger.info(
      f'warning: {name} chooses by all tokens of a group, later ones included:'
      ' bits per character of this decoder are not a likelihood, and the'
      ' decoder cannot write token by token.'
    )
  elif not router.is_causal_in_training:
    _logger.info(
      f'warning: {name} chooses by all tokens of a group in training, but token'
      ' by token in evaluation and sampling, so these use other experts than'
      ' training did.'
    )
