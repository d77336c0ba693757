"""Decides whether a record is held out, from this record alone."""

import hashlib

NAMES = ('train', 'validation')
HELD_OUT_PERCENT = 5


def by_hash(key: str) -> str:
  """The split of a record, for sources without a separate held-out file.

  A key is held out if the first 8 bytes of its SHA-256, as a big-endian number
  modulo 100, are less than HELD_OUT_PERCENT. Records with the same key are
  always in the same split, whatever other records there are.

  Args:
    key: a string that is equal for records that must share a split, such as a
      record's id, a law's code or a first line.

  Returns:
    'train' or 'validation'.
  """
  digest = hashlib.sha256(key.encode('utf-8')).digest()
  is_held_out = int.from_bytes(digest[:8], 'big') % 100 < HELD_OUT_PERCENT
  return NAMES[is_held_out]
