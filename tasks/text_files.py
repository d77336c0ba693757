"""Reads records from local files: plain text or JSON lines, also if compressed.

A file is checked from beginning to end before its first record is read, so that
no slow work starts on a broken file. A line is malformed if it is not UTF-8. A
JSON line is also malformed if it is no JSON, or lacks a field of the right
type. Malformed lines are skipped, and warnings name the first ten. If more than
`max_bad_fraction` of the lines of a file are malformed, an error is raised.
"""

import dataclasses
import functools
import glob
import json
import logging
import lzma
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from moe.data.text_file import OPENERS, unescaped
from tasks import splits

MAX_BAD_FRACTION = 1e-4
_MAX_WARNINGS = 10
_UTF8_MARK = b'\xef\xbb\xbf'

Record = dict[str, Any]
# The type of a record: `str`, `[fields]` for a list, or `{name: fields}`.
Fields = Any


def data_directory() -> pathlib.Path:
  """The directory for relative file names: $WUDAO_DATA, or ../shared/data."""
  project = pathlib.Path(__file__).resolve().parents[1]
  default = project.parent / 'shared' / 'data'
  return pathlib.Path(os.environ.get('WUDAO_DATA', default))


def conform(value: Any, fields: Fields, name: str = 'the record') -> Any:
  """A copy of a value with only the given fields.

  Args:
    value: as `json.loads` gives it.
    fields: `str`, `[fields]` or `{name: fields}`; other keys are left out.
    name: name of the value in error messages.

  Returns:
    A new value with exactly those fields.

  Raises:
    ValueError: if a field is missing or has another type, or if a string holds
      half of a surrogate pair, which UTF-8 cannot write.
  """
  if fields is str:
    if not isinstance(value, str):
      raise ValueError(f'{name} must be a string, got {value!r:.40}')
    value.encode('utf-8')
    return value
  if isinstance(fields, list):
    if not isinstance(value, list):
      raise ValueError(f'{name} must be a list, got {value!r:.40}')
    return [
      conform(item, fields[0], f'{name}[{i}]') for i, item in enumerate(value)
    ]
  if not isinstance(value, dict):
    raise ValueError(f'{name} must be a JSON object, got {value!r:.40}')
  for key in fields:
    if key not in value:
      raise ValueError(f'{name} must have the field {key!r}, has {list(value)}')
  return {key: conform(value[key], part, key) for key, part in fields.items()}


def check_fields(fields: Fields, name: str = 'the record') -> None:
  """Raises ValueError if `fields` is not a type that `conform` understands."""
  if isinstance(fields, Mapping):
    for key, part in fields.items():
      check_fields(part, f'the field {key!r}')
  elif isinstance(fields, list) and len(fields) == 1:
    check_fields(fields[0], f'an item of {name}')
  elif fields is not str:
    got = getattr(fields, '__name__', repr(fields))
    raise ValueError(
      f'{name} must be declared as str, as a list [str] or as a dict of such,'
      f' got {got}: a document is made of text alone, so leave it out, or write'
      ' it as a string in the file.'
    )


def parse_json(line: bytes, fields: Fields) -> Record:
  """A line of JSON as a record with the given fields.

  Raises:
    ValueError: if the line is malformed.
  """
  try:
    value = json.loads(line.decode('utf-8'))
  except RecursionError as error:
    raise ValueError('JSON is nested too deep') from error
  return conform(value, fields)


def parse_text(line: bytes) -> Record:
  r"""A line as a record; in the line, \n is a line break, \\ a backslash."""
  return {'text': unescaped(line.decode('utf-8'))}


def split_of(record: Record) -> str:
  """The split of a record, by a hash of its `id` or of the whole record."""
  key = record.get('id')
  return splits.by_hash(key or json.dumps(record, sort_keys=True))


@dataclasses.dataclass(frozen=True)
class LineSource:
  """A source of records that are lines of files.

  Attributes:
    files: a file name or glob pattern, or a dict with one of these for each
      split. A relative name starts at `data_directory()`. Files that end in
      `.gz` or `.xz` are decompressed.
    parse: bytes of a line -> record. It raises ValueError for a malformed line.
    split_fn: record -> its split. It is used if `files` is not a dict.
    max_bad_fraction: share of the lines of a file that may be malformed.
  """

  files: str | os.PathLike | Mapping[str, str | os.PathLike]
  parse: Callable[[bytes], Record]
  split_fn: Callable[[Record], str] = split_of
  max_bad_fraction: float = MAX_BAD_FRACTION
  _found_good: set[tuple] = dataclasses.field(default_factory=set, repr=False)

  def __str__(self) -> str:
    files = self.files if isinstance(self.files, Mapping) else {'': self.files}
    return f'lines of {", ".join(str(name) for name in files.values())}'

  @property
  def splits(self) -> tuple[str, ...]:
    """Names of the splits."""
    if isinstance(self.files, Mapping):
      return tuple(self.files)
    return splits.NAMES

  @property
  def is_split_by_record(self) -> bool:
    """Whether `split_fn` decides the split of each record."""
    return not isinstance(self.files, Mapping)

  def records(self, split: str) -> Iterator[Record]:
    """Records of a split, in the order of the files.

    Raises:
      ValueError: at once, if the split is unknown, or if a file is missing,
        damaged or malformed.
    """
    if split not in self.splits:
      raise ValueError(
        f'A split must be one of {", ".join(self.splits)}, got {split!r}.'
      )
    # Files are checked here, before the generator is made. Inside the generator
    # the errors would be raised late, somewhere inside tf.data.
    return self._records(split, [self._checked(p) for p in self._paths(split)])

  def files_of(self, split: str) -> list[str | os.PathLike]:
    """Names or patterns of the files of a split, for `tasks.origin`."""
    return [self.files if self.is_split_by_record else self.files[split]]

  def _records(
    self, split: str, paths: Sequence[pathlib.Path]
  ) -> Iterator[Record]:
    for path in paths:
      for _, line in _lines(path):
        try:
          record = self.parse(line)
        except ValueError:
          continue  # `_checked` has already counted and reported this line.
        if not self.is_split_by_record or self.split_fn(record) == split:
          yield record

  def _paths(self, split: str) -> list[pathlib.Path]:
    pattern = data_directory() / self.files_of(split)[0]
    paths = [pattern] if pattern.is_file() else sorted(glob.glob(str(pattern)))
    if not paths:
      raise ValueError(
        f'The corpus file {pattern} must exist, got nothing there: put it'
        ' there, or set $WUDAO_DATA to the directory that has it.'
      )
    return [pathlib.Path(path) for path in paths]

  def _checked(self, path: pathlib.Path) -> pathlib.Path:
    version = path, path.stat().st_mtime_ns, path.stat().st_size
    if version not in self._found_good:
      self._check(path)
      self._found_good.add(version)
    return path

  def _check(self, path: pathlib.Path) -> None:
    total, num_bad, first_bad = 0, 0, []
    for number, line in _lines(path):
      total += 1
      try:
        self.parse(line)
      except ValueError as error:
        num_bad += 1
        if len(first_bad) < _MAX_WARNINGS:
          first_bad.append(f'{path}:{number}: {error}')
    if num_bad > self.max_bad_fraction * total:
      raise ValueError(
        f'{first_bad[0]}; {num_bad} of {total} lines of the file are malformed,'
        f' at most {100 * self.max_bad_fraction:g}% of them may be: correct the'
        ' file, or allow more, with max_bad_fraction of the source or with'
        ' --max_bad_fraction of `launch.data cache`.'
      )
    for message in first_bad:
      logging.getLogger(__name__).warning('Skipped: %s', message)
    if num_bad > len(first_bad):
      logging.getLogger(__name__).warning(
        'Skipped %d lines of %s; the first are listed above.', num_bad, path
      )


def json_lines(
  files: str | os.PathLike | Mapping[str, str | os.PathLike],
  fields: Fields,
  split_fn: Callable[[Record], str] = split_of,
  max_bad_fraction: float = MAX_BAD_FRACTION,
) -> LineSource:
  """A source of JSON lines: one object per line, with at least these fields.

  Args:
    files: as in LineSource.
    fields: such as {'id': str, 'title': str, 'paragraphs': [str]}.
    split_fn: as in LineSource.
    max_bad_fraction: as in LineSource.

  Returns:
    The source; its records have exactly these fields.

  Raises:
    ValueError: if `fields` is not a valid declaration.
  """
  check_fields(fields)
  parse = functools.partial(parse_json, fields=fields)
  return LineSource(files, parse, split_fn, max_bad_fraction)


def plain_text(
  files: str | os.PathLike | Mapping[str, str | os.PathLike],
  split_fn: Callable[[Record], str] = split_of,
  max_bad_fraction: float = MAX_BAD_FRACTION,
) -> LineSource:
  r"""A source of plain text: one document per line.

  In a document, \n stands for a line break and \\ for a backslash.

  Args:
    files: as in LineSource.
    split_fn: as in LineSource.
    max_bad_fraction: as in LineSource.

  Returns:
    The source; its records are {'text': document}.
  """
  return LineSource(files, parse_text, split_fn, max_bad_fraction)


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
  """(number, line without its end) of each line that is not blank."""
  opener = OPENERS.get(path.suffix, open)
  number = 0
  try:
    with opener(path, 'rb') as f:
      for number, line in enumerate(f, start=1):
        if number == 1:
          line = line.removeprefix(_UTF8_MARK)
        if line.strip():
          yield number, line.rstrip(b'\r\n')
  except (OSError, EOFError, lzma.LZMAError) as error:
    raise ValueError(
      f'{path}:{number + 1}: the file must be readable to its end, got {error}:'
      ' copy it again.'
    ) from error
