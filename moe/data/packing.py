"""The pack plan: which segments of which documents share a row of a batch.

A segment is a run of tokens of one document. It has one segment id in its row.
"""

import contextlib
import dataclasses
import hashlib
import os
import zipfile

import numpy as np

from moe import atomic_files
from moe.data.order import scramble
from moe.data.store import Store
from moe.data.transforms import Shape

# Version of the packing method. It is part of the name of a saved plan, because
# another method gives another data order.
_METHOD = 1


@dataclasses.dataclass(frozen=True)
class PackPlan:
  """Rows of at most `sequence_length` tokens, made of segments of documents.

  Every token of every document is in exactly one segment. Row r holds the
  segments row_start[r] to row_start[r + 1] - 1, one after the other.

  Attributes:
    record: int64 [segments], number of the document.
    start: int32 [segments], index in the document of the segment's first token.
    length: int32 [segments], number of tokens of the segment.
    row_start: int64 [rows + 1], index of the first segment of each row.
    sequence_length: T.
  """

  record: np.ndarray
  start: np.ndarray
  length: np.ndarray
  row_start: np.ndarray
  sequence_length: int

  @property
  def num_rows(self) -> int:
    """Number of rows of one epoch."""
    return self.row_start.size - 1

  @property
  def fill(self) -> float:
    """Share of the places of all rows that hold a token."""
    places = max(1, self.num_rows) * self.sequence_length
    return float(self.length.sum(dtype=np.int64)) / places

  def records(self, rows: np.ndarray) -> np.ndarray:
    """The numbers of the documents in some rows, ascending."""
    segments = [
      np.arange(self.row_start[row], self.row_start[row + 1]) for row in rows
    ]
    chosen = np.concatenate([np.zeros(0, np.int64), *segments])
    return np.unique(self.record[chosen])


def pack(
  lengths: np.ndarray,
  sequence_length: int,
  blocks: np.ndarray | None = None,
) -> PackPlan:
  """Plans the rows of documents; the same lengths always give the same plan.

  A document that is longer than a row is cut into whole rows and a rest. If a
  cut would be in a block or directly after it, the segment ends before the
  block instead. Segments shorter than a row are placed from the longest to the
  shortest, each in the row where it leaves the least room (best-fit decreasing,
  Johnson 1973). Segments of the same length are placed in a hashed order, so
  that neighbours in a corpus rarely share a row.

  Args:
    lengths: int32, tokens of each document; empty documents are left out.
    sequence_length: tokens of a row.
    blocks: int [blocks, 4], as `Store.blocks`; None for none.

  Returns:
    The plan. Its rows are sorted by the documents of their longest segments.

  Raises:
    ValueError: if the sequence length is below 1, or too short for a block or
      for blocks that touch each other.
  """
  if sequence_length < 1:
    raise ValueError(f'sequence_length={sequence_length} must be at least 1.')
  lengths = np.asarray(lengths, np.int64)
  record, start = _cuts(lengths, sequence_length, blocks)
  # A segment ends where the next segment of its document begins. The last
  # segment ends with the document.
  end = np.append(start[1:], 0)
  is_last = np.append(record[1:] != record[:-1], True)[: record.size]
  length = np.where(is_last, lengths[record], end[: record.size]) - start
  row, rank = _place(length, sequence_length)
  # Rows are numbered by the place of their first segments in the corpus.
  first_segment = np.full(row.max(initial=-1) + 1, record.size)
  is_first = rank == 0
  first_segment[row[is_first]] = np.flatnonzero(is_first)
  new_row = np.empty_like(first_segment)
  order = np.argsort(first_segment, kind='stable')
  new_row[order] = np.arange(order.size)
  row = new_row[row]
  order = np.lexsort((rank, row))
  return PackPlan(
    record=record[order],
    start=start[order].astype(np.int32),
    length=length[order].astype(np.int32),
    row_start=np.searchsorted(row[order], np.arange(first_segment.size + 1)),
    sequence_length=sequence_length,
  )


def _cuts(
  lengths: np.ndarray, sequence_length: int, blocks: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
  """(document, first token) of each segment, in the order of the documents."""
  num_segments = -(-lengths // sequence_length)
  by_record = {}
  if blocks is not None and len(blocks):
    for number, begin, end, _ in blocks[lengths[blocks[:, 0]] > 0].tolist():
      # The place that predicts the token after a block reads the block's last
      # token, so this place is in the block too.
      if min(end + 1, lengths[number]) - begin > sequence_length:
        raise ValueError(
          f'sequence_length={sequence_length} must hold the block of tokens'
          f' {begin} to {end - 1} of document {number} and the token after it:'
          ' raise it, or make the block shorter.'
        )
      if num_segments[number] > 1:
        by_record.setdefault(number, []).append((begin, end))
    num_segments[list(by_record)] = 0
  record = np.repeat(np.arange(lengths.size), num_segments)
  first = np.repeat(np.cumsum(num_segments) - num_segments, num_segments)
  start = (np.arange(record.size) - first) * sequence_length
  if not by_record:
    return record, start
  found = [
    (number, cut)
    for number, spans in by_record.items()
    for cut in _cuts_between(int(lengths[number]), sequence_length, spans)
  ]
  record = np.append(record, [number for number, _ in found])
  start = np.append(start, [cut for _, cut in found])
  order = np.lexsort((start, record))
  return record[order], start[order]


def _cuts_between(
  length: int, sequence_length: int, spans: list[tuple[int, int]]
) -> list[int]:
  """First tokens of the segments of a document; no block is cut."""
  cuts = [0]
  while length - cuts[-1] > sequence_length:
    cut = cuts[-1] + sequence_length
    # If a cut is inside a block or directly after one, we move it to the start
    # of that block. The new place may be directly after an earlier block, so we
    # visit the blocks from the last to the first.
    for begin, end in reversed(spans):
      if begin < cut <= end:
        cut = begin
    if cut <= cuts[-1]:
      raise ValueError(
        f'sequence_length={sequence_length} must hold the blocks that touch'
        f' each other from token {cut} on: raise it, or put a token'
        ' between them.'
      )
    cuts.append(cut)
  return cuts


def _place(
  length: np.ndarray, sequence_length: int
) -> tuple[np.ndarray, np.ndarray]:
  """(row of each segment, its rank among the segments of the row, from 0)."""
  row = np.empty(length.size, np.int64)
  rank = np.zeros(length.size, np.int64)
  order = np.lexsort((scramble(np.arange(length.size)), -length))
  bounds = np.searchsorted(
    -length[order], -np.arange(sequence_length, -1, -1), side='right'
  )
  # rows[s] are the rows with room for exactly s more tokens; room[s] says
  # whether there is such a row.
  rows = [np.empty(0, np.int64) for _ in range(sequence_length + 1)]
  room = np.zeros(sequence_length + 1, bool)
  held = np.zeros(length.size, np.int64)  # Number of segments in each row.
  num_rows, begin = 0, 0
  for size, end in zip(range(sequence_length, 0, -1), bounds, strict=False):
    while begin < end:
      fitting = np.flatnonzero(room[size:])
      space = size + int(fitting[0]) if fitting.size else sequence_length
      per_row = space // size
      wanted = -(-int(end - begin) // per_row)
      if fitting.size:
        chosen, rows[space] = rows[space][:wanted], rows[space][wanted:]
        room[space] = rows[space].size > 0
      else:
        chosen = np.arange(num_rows, num_rows + wanted)
        num_rows += wanted
      taken = min(int(end - begin), chosen.size * per_row)
      segments = order[begin : begin + taken]
      row[segments] = np.repeat(chosen, per_row)[:taken]
      rank[segments] = held[row[segments]] + np.arange(taken) % per_row
      # Each chosen row gets per_row segments; only the last row may get fewer.
      given = np.full(chosen.size, per_row)
      given[-1] = taken - per_row * (chosen.size - 1)
      held[chosen] += given
      for count in {int(given[0]), int(given[-1])}:
        if left := space - count * size:
          rows[left] = np.concatenate([rows[left], chosen[given == count]])
          room[left] = True
      begin += taken
  return row, rank


def load_pack_plan(
  store: Store, sequence_length: int, shape: Shape | None = None
) -> PackPlan:
  """The pack plan of a store: read from the store, or made and kept there.

  Args:
    store: store of the documents.
    sequence_length: tokens of a row.
    shape: shape of the documents after a transform; None without a transform.

  Returns:
    The plan.
  """
  lengths, blocks, name = store.lengths, store.blocks, ''
  if shape is not None and not (
    np.array_equal(shape.lengths, lengths)
    and np.array_equal(shape.blocks, blocks)
  ):
    lengths, blocks = shape.lengths, shape.blocks
    whole = [np.asarray(a, '<i8').tobytes() for a in (lengths, blocks)]
    name = '-' + hashlib.sha256(b''.join(whole)).hexdigest()[:8]
  path = os.path.join(
    store.directory, f'plan-{sequence_length}-v{_METHOD}{name}.npz'
  )
  content = store.manifest['content_sha256']
  try:
    with np.load(path) as saved:
      if str(saved['content_sha256']) == content:
        fields = ('record', 'start', 'length', 'row_start')
        return PackPlan(*(saved[name] for name in fields), sequence_length)
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    pass  # A plan that is absent or damaged can always be made again.
  plan = pack(lengths, sequence_length, blocks)
  _save(plan, path, content)
  return plan


def _save(plan: PackPlan, path: str, content_sha256: str):
  # If the disk is read-only or full, the plan is not kept, and the next run
  # makes it again.
  with contextlib.suppress(OSError), atomic_files.replacing(path) as f:
    np.savez(
      f,
      record=plan.record,
      start=plan.start,
      length=plan.length,
      row_start=plan.row_start,
      content_sha256=content_sha256,
    )
