"""What can be wrong with a run, looked at before anything long is done."""

import logging
import os
import re
import tempfile
from collections.abc import Sequence
from typing import Any

import jax

from moe import axes, bounds
from moe.checkpoint import listing, save
from moe.data.store import file_sha256
from moe.modalities.ids import IdSpace, text_room
from moe.modalities.vocabulary import MIN_SIZE, Vocabulary
from moe.runs.run import Run, router_of
from moe.train.program import Program

_logger = logging.getLogger(__name__)


# A warning names at most so many settings that a resumed run had otherwise.
MAX_DIFFERENCES = 8
# A checkpoint holds these, and the run that goes on from it must have the same.
ORDER = ('seed', 'batch_size', 'sequence_length')
DATA_HASHES = {
  'ids_sha256': 'the id space of TASK',
  'vocabulary_sha256': 'the vocabulary of TASK',
  'manifest_hash': 'the documents of TASK',
}


def open_workdir(workdir: str) -> None:
  """Makes the directory, and proves that it can be written.

  Raises:
    ValueError: if it can't, or if a checkpoint would lie elsewhere.
  """
  path = os.path.abspath(workdir)
  # TensorStore takes a backslash for a slash, and knows names in UTF-8 only.
  if '\\' in path or path != path.encode('utf-8', 'ignore').decode('utf-8'):
    raise ValueError(
      f'--workdir={ascii(workdir)} must be UTF-8 without a backslash, which'
      ' checkpoints cannot be written below: choose another one.'
    )
  try:
    os.makedirs(workdir, exist_ok=True)
    # A name of its own: processes of other hosts try the same directory.
    with tempfile.NamedTemporaryFile(prefix='.probe-', dir=workdir) as f:
      f.write(b'x')
  except OSError as error:
    raise ValueError(
      f'--workdir={workdir} must be a directory that can be written'
      f' ({error.strerror}): choose another one.'
    ) from error


def check_names(
  run: Run, workdir: str, checkpoint_dir: str, differences: Sequence[str]
) -> None:
  """Looks at all that a run names, before anything is made for it.

  `build.find_data` looks up the tasks, all before the first is tokenised.

  Raises:
    ValueError: if a file is missing or does not fit, or if the work directory
      holds a run that cannot go on like this.
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
  check_resumed(run, workdir, checkpoint_dir, differences)


def check_resumed(
  run: Run, workdir: str, checkpoint_dir: str, differences: Sequence[str]
) -> None:
  """Compares a run with what its work directory holds, if it holds any.

  Raises:
    ValueError: if the order of the data would be another one, or there are more
      steps than wanted. Other differences are printed.
  """
  steps = listing.steps(checkpoint_dir)
  if not steps:
    return
  meta = listing.read_meta(os.path.join(checkpoint_dir, str(steps[-1])))
  check_saved(meta, run_identity(run), workdir)
  if run.settings.train_steps < steps[-1]:
    raise ValueError(
      f'TRAIN_STEPS={run.settings.train_steps} must be at least the'
      f' {steps[-1]} steps that {workdir} has been trained for: raise it, or'
      ' choose another --workdir.'
    )
  if differences:
    more = len(differences) - MAX_DIFFERENCES
    shown = list(differences[:MAX_DIFFERENCES]) + [f'{more} more'] * (more > 0)
    _logger.info(
      f'warning: {workdir} goes on with other settings than its config.gin has:'
      f' {"; ".join(shown)}'
    )


def run_identity(run: Run) -> dict[str, int]:
  """What the order of the data depends on, beside the data."""
  numbers = {**vars(run.settings), **vars(run.data)}
  return {key: numbers[key] for key in ORDER}


def check_vocabulary(path: str, workdir: str, vocab_size: int) -> None:
  """Raises ValueError for a vocabulary that is not fit, too big or another's.

  Args:
    path: of the vocabulary.
    workdir: keeps a copy of the one that its run began with.
    vocab_size: of the model's table.
  """
  vocabulary = Vocabulary(path)
  if vocabulary.size > vocab_size:
    raise ValueError(
      f'VOCAB_SIZE={vocab_size} must be at least the {vocabulary.size} pieces'
      f' of {path}: raise it, or choose another VOCABULARY.'
    )
  copy = os.path.join(workdir, 'vocabulary.model')
  if os.path.exists(copy) and file_sha256(copy) != vocabulary.sha256:
    raise ValueError(
      f'{copy} must be the vocabulary of the data, {path}, but differs: choose'
      ' another --workdir, or the VOCABULARY that this run began with.'
    )


def check_ids(space: IdSpace, vocab_size: int) -> None:
  """Raises ValueError unless the model has a row for every id.

  Args:
    space: of the data.
    vocab_size: of the model's table.
  """
  if space.size > vocab_size:
    raise ValueError(
      f'VOCAB_SIZE={vocab_size} must be at least {space.size}, the end of the'
      f' ids {space}: raise it, or make a range smaller.'
    )


def check_saved(
  saved: dict[str, Any], wanted: dict[str, Any], workdir: str
) -> None:
  """Raises ValueError unless a run goes on in the data it was saved in.

  Args:
    saved: with a checkpoint; what an earlier version did not save counts as
      equal.
    wanted: any of `run_identity` and of `DATA_HASHES`.
    workdir: of the run.
  """
  for key, value in wanted.items():
    before = saved.get(key, value)
    if before == value:
      continue
    if key in DATA_HASHES:
      raise ValueError(
        f'{DATA_HASHES[key]} must be what {workdir} was trained on (SHA-256'
        f' {before[:12]}), got {value[:12]}: bring back the corpus as it was,'
        ' or choose another --workdir.'
      )
    if key in ORDER:
      macro = key.upper()
      raise ValueError(
        f'{macro}={value} must be {before}, as {workdir} began with: another'
        ' one changes the order of the data and the count of tokens; set'
        f' --gin.{macro}={before}, or choose another --workdir.'
      )


def warn_of_held_out(
  saved: dict[str, Any], held_out: dict[str, str], workdir: str
) -> None:
  """Warns if a run goes on with other held-out documents than it had.

  Args:
    saved: with its newest checkpoint.
    held_out: a hash of the documents by task, now; the first task ranks.
    workdir: of the run.
  """
  before = saved.get('held_out')
  if before is None:  # An earlier version did not save it.
    return
  for task in held_out.keys() & before.keys():
    if held_out[task] != before[task]:
      _logger.info(
        f'warning: the held-out documents of {task} are not those that'
        f' {workdir} was scored on up to step {saved["step"]:,}: later scores'
        ' do not compare with earlier ones, and only checkpoints that were'
        ' scored on the same documents are ranked.'
      )
  first, first_before = (
    next(iter(tasks), None) for tasks in (held_out, before)
  )
  if first != first_before:
    _logger.info(
      f'warning: checkpoints of {workdir} were ranked by {first_before} up to'
      f' step {saved["step"]:,}, and are ranked by {first} from here on: only'
      ' those of one task are ranked.'
    )


def origin_of(run: Run) -> dict[str, Any]:
  """What was recorded with INITIAL_CHECKPOINT; ValueError if there is none."""
  try:
    directory, step = listing.locate(run.initial.checkpoint)
  except ValueError as error:
    raise ValueError(f'INITIAL_CHECKPOINT: {error}') from error
  if step is None:
    step = listing.steps(directory)[-1]
  return listing.read_meta(directory / str(step))


def check_origin(
  run: Run, program: Program, vocabulary_sha256: str | None
) -> None:
  """Raises ValueError where rows of an embedding would mean other tokens.

  Args:
    run: with INITIAL_CHECKPOINT, or nothing is compared.
    program: of the run.
    vocabulary_sha256: of the data.
  """
  if not run.initial.checkpoint:
    return
  theirs = origin_of(run).get('vocabulary_sha256', vocabulary_sha256)
  if theirs == vocabulary_sha256:
    return
  by_path = jax.tree_util.tree_leaves_with_path(
    program.logical_axes, is_leaf=lambda a: isinstance(a, tuple)
  )
  for key, names in by_path:
    path = jax.tree_util.keystr(key, simple=True, separator='/')
    is_assigned = any(re.fullmatch(p, path) for p, _ in run.initial.assignment)
    if axes.VOCAB in names and not is_assigned:
      raise ValueError(
        f'INITIAL_CHECKPOINT={run.initial.checkpoint} must be of the vocabulary'
        f' of the data (SHA-256 {vocabulary_sha256[:12]}), got {theirs[:12]}:'
        ' set VOCABULARY to the vocabulary.model of its run, or start the'
        f" embedding anew with ('{path}', None) in INITIAL_ASSIGNMENT."
      )


def check_disk(program: Program, steps_dir: str) -> None:
  """Raises ValueError unless two checkpoints can be written."""
  leaves = jax.tree.leaves(program.abstract)
  num_bytes = sum(a.size * a.dtype.itemsize for a in leaves)
  save.check_writable(steps_dir, 2 * num_bytes)


def warn_of_router(run: Run) -> None:
  """Warns if the router lets a token's experts depend on later tokens."""
  router = router_of(run)
  if router is None:
    return
  name = type(router).__name__
  if not router.is_causal:
    _logger.info(
      f'warning: {name} chooses by all tokens of a group: bits per character of'
      ' this decoder are not a likelihood, and it writes otherwise than it was'
      ' trained.'
    )
  elif not router.is_causal_in_training:
    _logger.info(
      f'warning: {name} chooses by all tokens of a group in training and token'
      ' by token in evaluation: this decoder is scored and writes otherwise'
      ' than it was trained.'
    )
