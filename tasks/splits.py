"""Which records are held out: a rule that looks at one record alone."""

import hashlib

NAMES = ('train', 'validation')
HELD_OUT_PERCENT = 5


def by_hash(key: str) -> str:
  """The split of a record whose source has no held-out file of its own.

  A key is held out if the first 8 bytes of its SHA-256, as a big-endian number
  modulo 100, are less than HELD_OUT_PERCENT. Records with the same key are
  always in the same split, and no other record changes that.

  Args:
    key: shared by the records that must stay together, such as a record's id,
      a law's code or a first line.

  Returns:
    'train' or 'validation'.
  """
  digest = hashlib.sha256(key.encode('utf-8')).digest()
  is_held_out = int.from_bytes(digest[:8], 'big') % 100 < HELD_OUT_PERCENT
  return NAMES[is_held_out]
