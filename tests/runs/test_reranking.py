"""Samples are ordered by the probability of the prompt when it follows them."""

import numpy as np
import pytest

from launch.configs import configuration
from moe.runs import reranking, title_relevance
from moe.runs.writing import Sample


@pytest.fixture(scope='module')
def run(run_directory):
  return configuration.load_run(str(run_directory))


def test_only_the_prompt_below_a_sample_is_scored(run):
  vocabulary = run.vocabulary
  document = reranking.document(vocabulary, '春曉', '花落')
  whole = [*vocabulary.encode('花落\n春曉'), vocabulary.eos]
  assert document.tokens.tolist() == whole
  scored = document.tokens[document.weights > 0].tolist()
  assert vocabulary.decode(scored) == '春曉'
  assert scored[-1] == vocabulary.eos


def test_the_sample_after_which_the_prompt_is_likeliest_comes_first(
  run, monkeypatch
):
  asked = []

  def prompt_nats(trained, prompts, samples):
    asked.extend(zip(prompts, samples, strict=True))
    return np.array([3.0, 1.0, 2.0])

  monkeypatch.setattr(reranking, 'prompt_nats', prompt_nats)
  samples = [Sample(f'題\n{text}', False) for text in '甲乙丙']
  ranked = reranking.reranked(run, '題\n', samples)
  assert [sample.text for sample in ranked] == ['題\n乙', '題\n丙', '題\n甲']
  assert asked[0] == ('題', '\n甲')


def test_nats_are_finite_and_differ_by_sample(run):
  nats = reranking.prompt_nats(run, ['春', '春'], ['眠', '曉'])
  assert np.isfinite(nats).all()
  assert nats[0] != nats[1]


def test_a_run_without_an_inverse_task_is_refused():
  reranking.check_inverse('runs/verse', ['poems_shi', 'poems_inverse'])
  with pytest.raises(ValueError, match='runs/poems .* got the tasks poems_shi'):
    reranking.check_inverse('runs/poems', ['poems_shi'])


def test_the_gain_is_that_of_the_likeliest_poem_over_the_mean():
  is_matched = np.array([[True, False], [False, False]])
  nats = np.array([[1.0, 2.0], [1.0, 2.0]])
  scores = title_relevance.scores_of(is_matched, nats, 'the command')
  values = {one['name']: one['value'] for one in scores}
  assert values == pytest.approx(
    {'unranked': 0.25, 'ranked': 0.5, 'gain of ranking': 0.25}
  )
