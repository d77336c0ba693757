"""Takes a run back to an earlier checkpoint; it can leave out some batches."""

import logging
import os

from moe.checkpoint import commit, integrity, listing, restore
from moe.data import skips
from moe.runs import bucket, lock

_logger = logging.getLogger(__name__)


def rewind(workdir: str, step: int, skipped: tuple[int, int] | None) -> None:
  """Makes a checkpoint the newest one, so that a run resumes from it.

  Newer checkpoints are renamed to `<step>.rewound`. An object store cannot
  rename them, so they are removed there.

  Args:
    workdir: directory of the run.
    step: the checkpoint to go back to.
    skipped: (first, end). From now on the run leaves out the batches that the
      steps `first` to `end - 1` have read. None leaves out none.

  Raises:
    ValueError: if the step is missing or damaged, if another run uses the
      directory, or if `step` < `first` < `end` does not hold.
  """
  directory = listing.locate(bucket.opened(workdir))[0]
  workdir = bucket.opened(os.fspath(directory.parent), is_written=True)
  mirror = bucket.Mirror(workdir)
  steps = listing.steps(directory)
  if step not in steps:
    raise ValueError(f'--to={step} must be one of {steps} in {directory}.')
  if skipped and not step < skipped[0] < skipped[1]:
    raise ValueError(
      f'--skip={skipped[0]}:{skipped[1]} must be FIRST:END with'
      f' {step} < FIRST < END, since the steps up to --to={step} are kept.'
    )
  with lock.held(mirror.place):
    problems = restore.damage(directory / str(step))
    if problems:
      raise ValueError(
        f'--to={step} must be sound, got {problems[0]}: choose another of'
        f' {steps}.'
      )
    if skipped:
      # The newest checkpoint records which batches its steps have left out. The
      # new file differs from this record. So if the rewind is interrupted here,
      # the run refuses to resume until the checkpoint is moved.
      newest = listing.read_meta(directory / str(steps[-1]))
      left_out = skips.of_json(newest.get('skipped_batches', ()))
      # The log may have steps after the newest checkpoint.
      if skips.read(workdir, skips.LOGGED).ranges:
        left_out = skips.read(workdir, skips.LOGGED)
      first, end = (left_out.number(logged - 1) for logged in skipped)
      left_out = left_out.also(first, end)
      for pair in skips.read(workdir).ranges:  # Also those of earlier rewinds.
        left_out = left_out.also(*pair)
      skips.write(workdir, left_out)
      mirror.send()
      _logger.info(f'batches {first} to {end - 1} are left out from now on')
    for newer in steps[steps.index(step) + 1 :][::-1]:
      if integrity.on_object_store(directory):
        commit.remove(directory, newer)
        continue
      aside = directory / f'{newer}.rewound'
      if aside.exists():
        aside.rmtree()
      (directory / str(newer)).rename(aside)
      _logger.info(f'{aside} is no longer used: remove it if you like')
