"""The summary and the page of a ladder, made from the files of its runs."""

import json

import pytest

from moe.report import comparison, corpora, ladder, ladder_page
from moe.runs.ladder import Finished, Tried
from moe.scale import joint_law

BITS = {'dense': (8.0, 7.0, 6.5), 'sparse': (7.9, 6.5, 5.9)}


def write_run(directory, seed, bits, is_sparse):
  """Writes a run with three evaluations on two corpora.

  The corpus 'verse' needs `bits` per character, 'law' needs 1 more.
  """
  directory.mkdir(parents=True)
  (directory / 'config.gin').write_text(str(seed))
  time = {'elapsed': 60.0}
  with open(directory / 'log.jsonl', 'w') as f:
    for step in (1, 2, 3):
      record = {'step': step, 'tokens': step * 1000, 'time': time}
      f.write(json.dumps(record) + '\n')
  with open(directory / 'eval.jsonl', 'w') as f:
    for step, value in enumerate(bits, 1):
      scores = {}
      for task, more, load in (('verse', 0, [[3, 1]]), ('law', 1, [[1, 3]])):
        scores[task] = {'bits_per_char': value + more, 'cross_entropy': 4.0}
        if is_sparse:
          scores[task]['layers'] = {'load': load}
      f.write(json.dumps({'step': step, 'eval': scores}) + '\n')
  counts = {'params_total': 30, 'params_active': 10}
  (directory / 'run.json').write_text(json.dumps(counts))
  return str(directory)


def summarised(tmp_path, curves, seeds, worse):
  """The summary of a ladder with one sweep of two rates, one of which diverged.

  Args:
    tmp_path: where the runs are written.
    curves: arm -> the scores of its first seed.
    seeds: arm -> number of seeds.
    worse: arm -> by how much each seed is worse than the one before.
  """
  directories = {
    arm: [
      write_run(
        tmp_path / arm / str(seed),
        seed,
        [b + worse[arm] * seed for b in bits],
        arm != 'dense',
      )
      for seed in range(seeds[arm])
    ]
    for arm, bits in curves.items()
  }
  tried = Tried(0.01, 100, 7.0, 4.0), Tried(0.02, 100, None, None)
  rates = dict.fromkeys(curves, tried)
  found = Finished(rates, dict.fromkeys(curves, 0.01), directories)
  configured = lambda path: (int(path.read_text()), ('mix', 'verse', 'law'))
  read = lambda directory: comparison.read_run(directory, configured)
  expansions = {arm: 1 if arm == 'dense' else 8 for arm in curves}
  return ladder.summarise(found, read, expansions, 'ladder')


@pytest.fixture
def summary(tmp_path):
  seeds = {'dense': 2, 'sparse': 2}
  return summarised(tmp_path, BITS, seeds, {'dense': 0, 'sparse': 0.2})


def test_an_arm_that_always_diverged_has_no_points(summary, tmp_path):
  diverged = [Tried(rate, 100, None, None) for rate in (0.01, 0.02)]
  summary['rates']['sparse'] = diverged
  ladder_page.write(summary, tmp_path / 'ladder.html')
  assert 'learning rate' in (tmp_path / 'ladder.html').read_text('utf-8')


def test_gains_are_paired_and_have_standard_errors(summary):
  arm = summary['tasks']['verse']['arms']['sparse']
  # At the end the gains of the two seeds are 6.5 - 5.9 = 0.6 and 6.5 - 6.1 =
  # 0.4. Their mean is 0.5. The standard error of two numbers is half their
  # difference.
  assert arm['gain'][-1] == pytest.approx(0.5)
  assert arm['standard_error'][-1] == pytest.approx(0.1)
  # The mean gains at 1000, 2000 and 3000 tokens are 0.0, 0.4 and 0.5. Each has
  # the standard error 0.1.
  assert arm['shown_from'] == 2000
  # The mean curve of the sparse arm is 8.0, 6.6, 6.0. The last score of the
  # dense arm is 6.5, which is 1/6 of the way from 6.6 to 6.0.
  assert arm['tokens_needed'] == pytest.approx(2000 + 1000 / 6)


def test_an_arm_with_fewer_seeds_is_compared_over_its_own_seeds(tmp_path):
  # The second dense run is 1 bit worse than the first, so the mean of both ends
  # at 7.0. The arm 'few' has only the first seed, where the dense run ends at
  # 6.5.
  summary = summarised(
    tmp_path,
    {'dense': BITS['dense'], 'few': BITS['sparse'], 'sparse': BITS['sparse']},
    {'dense': 2, 'few': 1, 'sparse': 2},
    {'dense': 1, 'few': 0, 'sparse': 1},
  )
  arms = summary['tasks']['verse']['arms']
  assert arms['dense']['bits'][-1] == pytest.approx(7.0)
  few = arms['few']
  assert few['base_bits'][-1] == pytest.approx(6.5)
  assert few['base_bits'][-1] - few['bits'][-1] == pytest.approx(
    few['gain'][-1]
  )
  # The curve of 'few' is 7.9, 6.5, 5.9, so it reaches 6.5 at 2000 tokens.
  assert few['tokens_needed'] == pytest.approx(2000)
  scores = {score['name']: score for score in summary['scores']}
  assert scores['verse, dense']['n'] == 2
  assert scores['verse, dense']['value'] == pytest.approx(7.0)


def test_the_law_is_given_in_bits_per_character(summary):
  arm = summary['tasks']['law']['arms']['sparse']
  # In the last evaluation of the first run, 6.9 bits per character correspond
  # to 4 nats per token.
  nats = joint_law.gain(10, 3000, 8)
  assert arm['law_gain'][-1] == pytest.approx(nats * 6.9 / 4)


@pytest.mark.parametrize(
  ('bits', 'needed'), [((5.0, 4.0), 10.0), ((9.0, 8.0), None)]
)
def test_tokens_needed_stay_inside_the_curve(bits, needed):
  assert ladder.tokens_needed((10, 20), bits, 7.0) == needed


def test_a_gain_that_is_lost_again_is_not_shown():
  assert ladder.shown_from((1, 2, 3), (1, 0.1, 1), (0.1, 0.1, 0.1)) == 3
  assert ladder.shown_from((1, 2), (1, 0.1), (0.1, 0.1)) is None
  assert ladder.shown_from((1, 2), (1, 1), (None, None)) is None


def test_the_page_has_curves_tables_and_loads(summary, tmp_path):
  ladder_page.write(summary, tmp_path / 'ladder.html')
  page = (tmp_path / 'ladder.html').read_text(encoding='utf-8')
  # The figures are: curves of two corpora, learning rates, and loads.
  assert page.count('<svg') == 4
  assert '2 k tokens' in page and '72%' in page
  assert 'verse, gain of sparse' in page
  assert ladder_page.as_text(summary).startswith('arm')


def test_a_picture_has_the_curves_of_all_tasks(summary, tmp_path):
  ladder_page.write_picture(summary, tmp_path / 'ladder.svg')
  picture = (tmp_path / 'ladder.svg').read_text(encoding='utf-8')
  assert picture.startswith('<?xml') and 'var(--' not in picture
  for words in ('verse, bits per character', 'law, bits', 'gain on dense'):
    assert words in picture


def test_a_table_has_the_loss_at_each_rate(summary):
  summary['rates'] = {
    'dense': (
      Tried(0.01, 100, 7.2, 4.1),
      Tried(0.02, 100, 7.0, 4.0),
      Tried(0.04, 100, None, None),
    ),
    'sparse': (Tried(0.02, 100, 6.9, 3.93), Tried(0.04, 100, 6.8, 3.9)),
  }
  _, *rows = ladder_page.rates_table(summary)
  # The rate 0.04 is twice the best rate of the dense arm. The sparse arm loses
  # 3.93 - 3.90 nats if it takes the dense arm's rate.
  assert rows == [
    ['dense', '0.01', '7.2000', '4.1000', '+0.1000', '-1.0', ''],
    ['dense', '0.02', '7.0000', '4.0000', '+0.0000', '+0.0', 'best'],
    ['dense', '0.04', '–', '–', '–', '–', 'diverged'],
    ['sparse', '0.02', '6.9000', '3.9300', '+0.0300', '+0.0', ''],
    ['sparse', '0.04', '6.8000', '3.9000', '+0.0000', '+1.0',
     'best, no higher rate was tried'],
  ]  # fmt: skip
  assert 'no higher rate was tried' in ladder_page.as_text(summary)


def test_the_loads_say_which_experts_serve_a_corpus(summary):
  # Each corpus has the loads 3 and 1, so the shares are 3/4 and 1/4.
  assert summary['loads'] == {
    'sparse': {'verse': [[0.75, 0.25]], 'law': [[0.25, 0.75]]}
  }
  found = corpora.corpora(summary['loads']['sparse'])
  # In 'verse' the experts have 3/4 and 1/4 of the load; the mean over both
  # corpora is 1/2. So 25% of the load would have to move to the other expert to
  # give the mean loads, and expert 0 has 1.5 times its mean load.
  assert found.rows[1] == ['verse', '25%: 0 (1.5x), 1 (0.5x)']
  assert found.rows[2] == ['law', '25%: 1 (1.5x), 0 (0.5x)']
  assert 'law     25%: 1 (1.5x), 0 (0.5x)' in ladder_page.as_text(summary)
  assert corpora.shares({'verse': {'layers': {}}}) == {}
