"""Bits per character of general compressors."""

import pytest

from moe.evaluate import compression


def test_a_document_read_before_costs_xz_little():
  text = ''.join(chr(0x4E00 + (n * n * 7919) % 5000) for n in range(400))
  found = compression.compressed_bits([text], [text])
  assert found['xz -9e after the training text'] < 1
  assert min(found[name] for name in ('gzip -9', 'zstd -19', 'xz -9e')) > 12


def test_a_constant_text_costs_next_to_nothing():
  found = compression.compressed_bits(['春' * 10_000])
  assert set(found) == {'gzip -9', 'zstd -19', 'xz -9e'}
  assert max(found.values()) < 0.1


def test_empty_texts_are_refused():
  with pytest.raises(ValueError, match='at least one character'):
    compression.compressed_bits(['', ''])
