"""Similar sequences are found, by words and then by alignment."""

import logging

import numpy as np
import pytest

from moe.modalities import residues, similarity

RANDOM = np.random.default_rng(0)


def drawn(size):
  return ''.join(RANDOM.choice(list(residues.LETTERS[:20]), size))


def test_identity_counts_equal_residues_of_the_shorter_sequence():
  one = 'ACDEFGHIKLMNPQRSTVWY'
  assert similarity.identity(one, one) == 1
  # 15 of 20 residues are equal.
  assert similarity.identity(one, one[:15] + 'GGGGG') == 0.75
  # All 10 residues of the shorter one are in the longer one.
  assert similarity.identity(one, one[5:15]) == 1


def test_a_gap_of_two_residues_does_not_end_an_alignment():
  one = drawn(60)
  assert similarity.identity(one, one[:30] + one[32:]) == 1


def test_related_sequences_share_words_and_others_seldom_do():
  origin = drawn(200)
  changed = [
    ''.join(a if RANDOM.random() < 0.5 else drawn(1) for a in origin)
    for _ in range(5)
  ]
  found = set(similarity.likely([origin, *changed]))
  assert {(number, 0) for number in range(1, 6)} <= found
  strangers = [drawn(200) for _ in range(50)]
  pairs = list(similarity.likely(strangers))
  assert len(pairs) < 0.1 * 50 * 49 / 2


def test_long_unrelated_sequences_are_seldom_aligned():
  # Each pair shares about 6 words, since a random word is one of 20^4.
  strangers = [drawn(1000) for _ in range(30)]
  assert len(list(similarity.likely(strangers))) < 0.2 * 30 * 29 / 2


def test_related_parts_of_long_sequences_are_found():
  one, two = drawn(1000), drawn(1000)
  two = two[:700] + one[100:140] + two[700:]
  assert list(similarity.likely([one, two])) == [(1, 0)]


def test_the_comparison_of_many_sequences_logs_its_progress(
  monkeypatch, caplog
):
  monkeypatch.setattr(similarity, '_PERIOD', -1.0)
  with caplog.at_level(logging.INFO):
    list(similarity.likely([drawn(30), drawn(30)]))
  assert '2 of 2 chains compared' in caplog.text


def test_a_sequence_of_one_residue_is_compared_too():
  for size in (30, 400):
    pair = ['A' * size, 'A' * (size + 10)]
    assert list(similarity.likely(pair)) == [(1, 0)]


def test_the_highest_identity_is_between_the_two_groups_only():
  one, two = drawn(50), drawn(50)
  mixed = one[:25] + drawn(25)
  highest = similarity.highest_identity([one, one], [two, mixed])
  assert highest == pytest.approx(0.5, abs=0.1)
  assert similarity.highest_identity([one, one], ['W' * 40]) == 0
