"""Comparisons of two groups of runs, with gains that are computed by hand."""

import json
import math

import pytest

from moe.evaluate import score
from moe.report import comparison, comparison_page


def write_run(
  directory, seed, bits, task='poems', step_tokens=100, held_out=(), **more
):
  """Writes a work directory with evaluations at two steps."""
  directory.mkdir()
  (directory / 'config.gin').write_text(f'{seed} {task}')
  with open(directory / 'log.jsonl', 'w') as log:
    for step in range(1, 21):
      record = {'step': step, 'tokens': step * step_tokens, **more}
      log.write(json.dumps(record) + '\n')
  with open(directory / 'eval.jsonl', 'w') as log:
    hashes = [{'held_out': {task: sha256}} for sha256 in held_out] or [{}, {}]
    for step, value, of in zip((10, 20), bits, hashes, strict=True):
      scores = {task: {'bits_per_char': value}}
      log.write(json.dumps({'step': step, 'eval': scores, **of}) + '\n')
  (directory / 'run.json').write_text('{"params_total": 1000000}')
  return str(directory)


@pytest.fixture
def sides(tmp_path):
  sparse = [
    write_run(tmp_path / f'sparse_{s}', s, bits, dropped_fraction=0.25)
    for s, bits in ((0, (8.0, 7.0)), (1, (8.1, 7.1)), (2, (8.2, 7.2)))
  ]
  dense = [
    write_run(tmp_path / f'dense_{s}', s, bits)
    for s, bits in ((2, (8.5, 7.6)), (0, (8.2, 7.1)), (1, (8.2, 7.4)))
  ]
  return sparse, dense


def configured(path):
  """Reads (seed, tasks) from a config.gin that contains nothing else."""
  seed, task = path.read_text().split()
  return int(seed), (task, task)


def run(sparse, dense):
  read = lambda side: [comparison.read_run(d, configured) for d in side]
  return comparison.compare(read(sparse), read(dense))


def test_gain_and_standard_error_are_paired_by_seed(sides):
  found = run(*sides)
  poems = found['tasks']['poems']
  assert found['seeds'] == [0, 1, 2]
  assert poems['tokens'] == [1000, 2000]
  # At the last step the gains are 7.1 - 7.0 = 0.1, 7.4 - 7.1 = 0.3 and 7.6 -
  # 7.2 = 0.4, with the mean 0.8 / 3 = 0.2667. Their variance is (0.1667^2 +
  # 0.0333^2 + 0.1333^2) / 2 = 0.02333 = 0.07 / 3.
  assert poems['gain'][1] == pytest.approx(0.8 / 3)
  assert poems['standard_error'][1] == pytest.approx(math.sqrt(0.07 / 3 / 3))
  assert found['runs']['dropped_fraction'] == 0.25
  assert found['against']['dropped_fraction'] is None


def test_the_scores_are_means_over_seeds_with_their_intervals(sides):
  found = run(*sides)
  scores = [score.from_json(entries) for entries in found['scores']]
  names = ['poems, sparse', 'poems, dense', 'poems, gain']
  assert [one.name for one in scores] == names
  ours, _, gain = scores
  assert (ours.value, ours.n, gain.n) == (pytest.approx(7.1), 3, 3)
  # For two degrees of freedom, Student's t is 4.3027 at 97.5%. The interval
  # extends this many standard errors to both sides.
  margin = 4.3027 * math.sqrt(0.07 / 3 / 3)
  assert gain.value == pytest.approx(0.8 / 3)
  assert gain.high - gain.value == pytest.approx(margin, rel=1e-4)
  assert gain.is_higher_better and not ours.is_higher_better
  assert score.as_table(scores) in comparison_page.as_text(found)


def test_runs_with_equal_bits_do_not_lose(tmp_path):
  ours = write_run(tmp_path / 'one', 0, (8.0, 7.1))
  theirs = write_run(tmp_path / 'eight', 0, (8.0, 7.09999))
  words = comparison_page.sentence(run([ours], [theirs]), 'poems')
  assert words.startswith('one and eight are equal to four decimals;')


def test_the_text_has_labels_numbers_and_a_sentence(sides):
  text = comparison_page.as_text(run(*sides))
  assert text.startswith('sparse against dense: 2,000 tokens')
  assert '25.0%' in text and '1,000,000' in text
  assert (
    'sparse gains 0.2667 bits per character on dense, with a standard error of'
    ' 0.0882 (mean over 3 seeds, paired by seed).' in text
  )


def test_one_seed_has_a_gain_but_no_standard_error(sides):
  sparse, dense = sides
  text = comparison_page.as_text(run(sparse[:1], dense[1:2]))
  assert 'one seed gives no standard error' in text


def test_the_number_of_tokens_may_differ_between_seeds(tmp_path):
  sides = [
    [
      write_run(tmp_path / f'{name}_{s}', s, bits, step_tokens=100 + s)
      for s in range(2)
    ]
    for name, bits in (('sparse', (8.0, 7.0)), ('dense', (8.0, 7.5)))
  ]
  found = run(*sides)['tasks']['poems']
  assert found['tokens'] == [1000, 2000]
  assert found['gain'] == [0.0, 0.5]


def test_unequal_flops_give_a_remark(sides, tmp_path):
  for name, optimizer in (('sparse', 11), ('dense', 1)):
    facts = {
      'flops_per_token_train': 99,
      'flops_per_token_optimizer': optimizer,
    }
    for seed in range(3):
      path = tmp_path / f'{name}_{seed}' / 'run.json'
      path.write_text(json.dumps(facts))
  remark = comparison_page.flops_remark(run(*sides))
  assert "with the optimizer's, differ by +10.0%" in remark


@pytest.mark.parametrize('suffix', ['html', 'png', 'svg'])
def test_the_curves_are_drawn(sides, tmp_path, suffix):
  output = tmp_path / f'curves.{suffix}'
  comparison_page.write(run(*sides), output)
  drawn = output.read_bytes()
  if suffix == 'html':
    assert drawn.count(b'<svg') == 1 and b'sparse gains 0.2667' in drawn
  else:
    assert drawn.startswith(b'\x89PNG' if suffix == 'png' else b'<?xml')


def test_names_that_a_picture_cannot_draw_stand_beside_it(tmp_path, recwarn):
  runs = [write_run(tmp_path / '稀疏_0', 0, (8.0, 7.0), task='詩')]
  others = [write_run(tmp_path / 'dense_0', 0, (8.2, 7.1), task='詩')]
  found = run(runs, others)
  names = comparison_page.write(found, tmp_path / 'curves.png')
  assert names == 'runs = 稀疏, held out = 詩'
  assert comparison_page.write(found, tmp_path / 'curves.svg') == ''
  assert '稀疏' in (tmp_path / 'curves.svg').read_text('utf-8')
  comparison_page.write(found, tmp_path / 'curves.html')
  assert not [w for w in recwarn if 'Glyph' in str(w.message)]


def break_log(sparse, dense, tmp_path):
  (tmp_path / 'dense_1' / 'log.jsonl').unlink()


def break_evaluation(sparse, dense, tmp_path):
  (tmp_path / 'dense_1' / 'eval.jsonl').unlink()


def leave_one_out(sparse, dense, tmp_path):
  dense.pop()


def repeat_a_seed(sparse, dense, tmp_path):
  sparse.append(write_run(tmp_path / 'again', 2, (8.0, 7.0)))


def change_the_task(sparse, dense, tmp_path):
  dense[0] = write_run(tmp_path / 'other', 2, (8.0, 7.0), task='ci')


def change_the_tokens(sparse, dense, tmp_path):
  dense[0] = write_run(tmp_path / 'other', 2, (8.0, 7.0), step_tokens=200)


def evaluate_less(sparse, dense, tmp_path):
  for name in ('sparse_1', 'dense_1'):
    path = tmp_path / name / 'eval.jsonl'
    path.write_text(path.read_text().splitlines(keepends=True)[0])


def change_the_model(sparse, dense, tmp_path):
  (tmp_path / 'dense_1' / 'run.json').write_text('{"params_total": 5}')


def score_other_documents(sparse, dense, tmp_path):
  bits = (8.0, 7.0)
  sparse[2] = write_run(tmp_path / 'a', 2, bits, held_out=('a' * 64, 'a' * 64))
  dense[0] = write_run(tmp_path / 'b', 2, bits, held_out=('a' * 64, 'b' * 64))


@pytest.mark.parametrize(
  ('spoil', 'sentence'),
  [
    (break_log, 'dense_1/log.jsonl must exist'),
    (break_evaluation, 'must hold a held-out score, got none'),
    (leave_one_out, 'the same seeds, got 0, 1, 2 against 0, 2'),
    (repeat_a_seed, 'must differ in seed, got seeds 0, 1, 2, 2'),
    (change_the_task, 'on the same tasks, got poems, poems in'),
    (change_the_tokens, 'the same number of tokens, got 2,000 in'),
    (evaluate_less, 'be evaluated equally often, got 2 in'),
    (
      score_other_documents,
      'held-out documents of poems, got (SHA-256) aaaaaa',
    ),
    (change_the_model, 'must have the same model, got 1000000 parameters'),
  ],
)
def test_unequal_runs_are_refused_with_the_reason(
  sides, tmp_path, spoil, sentence
):
  spoil(*sides, tmp_path)
  with pytest.raises(ValueError) as caught:
    run(*sides)
  assert sentence in str(caught.value)
