"""Checks that a token store agrees with its manifest and its vocabulary."""

import collections
import hashlib
import os

from moe.data.store import Record, Store, encode_record, file_sha256
from moe.modalities.ids import EOS, UNK, IdSpace, of_manifest
from moe.modalities.text import Vocabulary

_RECORDS_AT_ONCE = 1024
_MAX_PROBLEMS = 20


def verify(directory: str | os.PathLike) -> list[str]:
  """Checks a store against its manifest and its vocabulary, record by record.

  It hashes the files and the vocabulary, reads every record, and counts tokens
  and characters again. The ids of a record must be in range, must end with the
  end mark, and must be the ids that the vocabulary gives to the record's text.

  Args:
    directory: directory of the store.

  Returns:
    The problems, one sentence each; empty if the store has none. At most 20
    records are named.
  """
  try:
    store = Store(directory)
    problems = _file_problems(store)
    vocabulary = Vocabulary(store.vocabulary_path)
    ids = of_manifest(store.manifest)
  except ValueError as error:
    return [str(error)]
  manifest = store.manifest
  for name, found in (
    ('vocabulary_sha256', vocabulary.sha256),
    ('vocab_size', vocabulary.size),
  ):
    if found != manifest[name]:
      problems.append(
        f'The manifest says {name} {manifest[name]}, {vocabulary.path} has'
        f' {found}.'
      )
  if problems:
    return problems
  return _record_problems(store, vocabulary, ids)


def _file_problems(store: Store) -> list[str]:
  problems = []
  for name, expected in store.manifest['files'].items():
    path = os.path.join(store.directory, name)
    if not os.path.isfile(path):
      problems.append(f'{path} is missing.')
    elif (found := file_sha256(path)) != expected['sha256']:
      problems.append(
        f'{path} must have SHA-256 {expected["sha256"]}, got {found}.'
      )
  return problems


def _record_problems(
  store: Store, vocabulary: Vocabulary, space: IdSpace
) -> list[str]:
  problems = []
  totals, content = collections.Counter(), hashlib.sha256()

  def unreadable(index: int, error: Exception):
    problems.append(f'Record {index} cannot be read: {error}.')

  for start in range(0, store.lengths.size, _RECORDS_AT_ONCE):
    indices = range(start, min(start + _RECORDS_AT_ONCE, store.lengths.size))
    records = store.read(indices, unreadable)
    for index, record in zip(indices, records, strict=True):
      if record is None:
        continue
      data = encode_record(record)
      content.update(len(data).to_bytes(8, 'little') + data)
      problem = _record_problem(record, vocabulary, space, totals)
      if problem:
        problems.append(f'Record {index}: {problem}.')
    if len(problems) >= _MAX_PROBLEMS:
      return problems[:_MAX_PROBLEMS]
  if content.hexdigest() != store.manifest['content_sha256']:
    problems.append(
      'The records must be those of the manifest, got another SHA-256.'
    )
  counts = {'tokens': store.manifest['tokens'], **store.manifest['counts']}
  for name, found in totals.items():
    if found != counts[name]:
      problems.append(f'The manifest says {counts[name]} {name}, got {found}.')
  return problems


def _record_problem(
  record: Record,
  vocabulary: Vocabulary,
  space: IdSpace,
  totals: collections.Counter,
) -> str | None:
  """The problem of a record, or None; adds the counts of a record to `totals`.

  A record without an end mark, or with an id out of range, adds nothing.
  """
  ids = record['tokens'].tolist()
  if not ids or ids[-1] != EOS:
    return 'the last token is not the end mark'
  if space.unknown(record['tokens']).size:
    return f'ids from {min(ids)} to {max(ids)} in a vocabulary of {space}'
  weights = record.get('loss_weights')
  num_scored = len(ids) if weights is None else int(weights.sum())
  prompt, target = ids[:-num_scored], ids[-num_scored:-1]
  # A code that is not text, such as a code of a picture, counts as one
  # character and one byte.
  texts = [space.codes('text', part).tolist() for part in (prompt, target)]
  num_codes = len(target) - len(texts[1])
  text = vocabulary.decode(texts[1])
  totals.update(
    tokens=len(ids),
    scored_tokens=num_scored,
    chars=len(text) + num_codes,
    bytes=len(text.encode()) + num_codes,
    unknown_tokens=ids.count(UNK),
  )
  for part in texts:
    if vocabulary.encode(vocabulary.decode(part)) != part:
      return f'its ids do not survive the vocabulary: {part[:10]}'
  if record['num_chars'] != len(text) + num_codes:
    return (
      f'num_chars is {record["num_chars"]}, the text has'
      f' {len(text) + num_codes}'
    )
  return None
