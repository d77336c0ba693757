"""Sequences that users give are cleaned or refused."""

import pytest

from moe.modalities import sequences


@pytest.mark.parametrize(
  ('given', 'read'),
  [
    ('acdefg', 'ACDEFG'),
    (' AC-D.E\nFG* ', 'ACDEFG'),
    ('ACBZJUOX', 'ACXXXXXX'),
  ],
)
def test_a_sequence_is_read_as_documented(given, read):
  assert sequences.cleaned(given) == read


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ('', 'at least one residue, got none'),
    ('--*', 'at least one residue, got none'),
    ('AC1D', "got '1', first at residue 3"),
    ('AC*DE', "stop mark '\\*' at residue 3"),
    ('蛋白', 'one-letter names'),
  ],
)
def test_a_wrong_sequence_is_refused_with_the_place(given, message):
  with pytest.raises(ValueError, match=message):
    sequences.cleaned(given)


def test_a_fasta_file_with_windows_ends_is_read():
  text = (
    '\ufeff>one first chain\r\nACDE\r\nFG\r\n\r\n>two/2\r\nMK*\r\n>one\r\nW'
  )
  assert sequences.of_fasta(text) == {
    'one': 'ACDEFG',
    'two_2': 'MK',
    'one_': 'W',
  }


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'must hold a sequence, got none'),
    ('ACDE', "must begin with '>'"),
    ('>a\n>b\nAC', "'a' must have at least one residue"),
  ],
)
def test_a_text_that_is_no_fasta_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    sequences.of_fasta(text)


def test_a_file_in_another_encoding_is_refused(tmp_path):
  (tmp_path / 'a.fasta').write_bytes('>a\nACDE'.encode('utf-16'))
  with pytest.raises(ValueError, match='must be text in UTF-8'):
    sequences.read_fasta(f'{tmp_path}/a.fasta', '--fasta')
