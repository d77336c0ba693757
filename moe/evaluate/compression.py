"""Baselines for bits per character: general compressors such as xz."""

import gzip
import lzma
import sys
from collections.abc import Callable, Sequence

if sys.version_info >= (3, 14):
  from compression import zstd
else:
  from backports import zstd

# Marks the end of a document. UTF-8 text never has this byte.
_END = b'\xff'
# xz can refer back to data that is at most this many bytes earlier.
_XZ_WINDOW = 1 << 26


def _xz(data: bytes) -> bytes:
  filters = [
    {'id': lzma.FILTER_LZMA2, 'preset': 9 | lzma.PRESET_EXTREME}
    | {'dict_size': _XZ_WINDOW}
  ]
  return lzma.compress(data, lzma.FORMAT_RAW, filters=filters)


_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
  'gzip -9': lambda data: gzip.compress(data, 9, mtime=0),
  'zstd -19': lambda data: zstd.compress(data, 19),
  'xz -9e': _xz,
}


def joined(texts: Sequence[str]) -> bytes:
  """Joins documents as UTF-8 bytes, with an end mark after each."""
  return b''.join(text.encode() + _END for text in texts)


def compressed_bits(
  texts: Sequence[str], train_texts: Sequence[str] = ()
) -> dict[str, float]:
  """Bits per character of documents, compressed by each compressor.

  Args:
    texts: documents, which are compressed together. Each one gets an end mark.
    train_texts: training text. Before the documents, xz reads the end of this
      text, at most half of the window of xz. The result counts only the bytes
      that the documents add to the compressed size. The other compressors do
      not read the text, because they look back too few bytes.

  Raises:
    ValueError: if there is no character to divide by.
  """
  chars = sum(map(len, texts))
  if not chars:
    raise ValueError('texts must hold at least one character, got none.')
  data = joined(texts)
  bits = lambda size: 8 * size / chars
  found = {
    name: bits(len(compress(data))) for name, compress in _COMPRESSORS.items()
  }
  if train_texts:
    before = joined(train_texts)[-_XZ_WINDOW // 2 :]
    added = len(_xz(before + data)) - len(_xz(before))
    found['xz -9e after the training text'] = bits(added)
  return found
