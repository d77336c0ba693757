"""Scores of language models of chains."""

import types

import numpy as np
import pytest

from moe.runs import chain_language


def test_the_most_frequent_letter_after_a_context_is_the_guess():
  train = [np.array([0, 1, 2, 0, 1, 2]), np.array([0, 1, 3])]
  held_out = [np.array([0, 1, 2, 5]), np.array([4])]
  # Letters without a context: 0 and 1 are the most frequent (three times each).
  # 0 occurs first, so 0 is always the guess.
  counts = chain_language.num_right_ngram(train, held_out, 1)
  assert counts.tolist() == [1, 0]
  # Three guesses are right: 0 at the start, 1 after 0, and 2 after 0 and 1.
  counts = chain_language.num_right_ngram(train, held_out, 3)
  assert counts.tolist() == [3, 0]


def test_a_run_without_a_task_of_chains_is_refused(monkeypatch):
  store = types.SimpleNamespace(manifest={'task': 'poems_shi'})
  monkeypatch.setattr(
    chain_language.scoring, 'task_stores', lambda *given: [store]
  )
  data = types.SimpleNamespace(train='poems', transforms=())
  trained = types.SimpleNamespace(run=types.SimpleNamespace(data=data))
  with pytest.raises(ValueError, match='have trained one of.*got poems_shi'):
    chain_language.scores(trained, None, 96, 'c')
