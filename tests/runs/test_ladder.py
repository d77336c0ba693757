"""A ladder trains the right runs, and continues when it is started again."""

import os
import pathlib
import signal
import sys
import threading

import pytest

from moe import stop_signals
from moe.runs import ladder
from moe.runs.arms import Arm

DENSE = Arm('dense', ('DENSE_TWIN=True',), 2)
SPARSE = Arm('sparse', ('NUM_EXPERTS=4',), 1)

# This script replaces the training command. If `best` is the best rate of the
# arm, the score is 5 + |log2(rate / best)|. A rate above 8 diverges.
TRAIN = """
import json, math, pathlib, signal, sys, time
bound = dict(a.split('=', 1) for a in sys.argv[1:])
rate, workdir = float(bound['LEARNING_RATE']), pathlib.Path(bound['--workdir'])
with open(workdir / 'started.txt', 'a') as f:
  print('started', file=f)
if rate > 8:
  sys.exit(print('error: The loss was not finite') or 2)
if bound.get('NUM_EXPERTS') == 'wait':
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  (workdir / 'waits').touch()
  time.sleep(60)
if bound.get('NUM_EXPERTS') == '3':
  other = workdir.parents[1] / 'slow' / workdir.name / 'waits'
  while 'slow' in bound and not other.exists():
    time.sleep(0.02)
  sys.exit(print('error: no disk') or 2)
best = 4 if bound.get('DENSE_TWIN') else 1
bits = abs(math.log2(rate / best)) + 5
verse = {'bits_per_char': bits, 'cross_entropy': bits / 2}
scores = {'step': 1, 'eval': {'verse': verse}}
(workdir / 'eval.jsonl').write_text(json.dumps(scores) + '\\n')
(workdir / 'run.json').write_text('{}')
"""


@pytest.fixture
def train(tmp_path):
  script = tmp_path / 'train.py'
  script.write_text(TRAIN)
  return lambda bindings: [sys.executable, str(script), *bindings]


def made(rates=(1.0, 2.0), arms=(DENSE, SPARSE), **more):
  """A ladder with tokens for 20 steps in the sweep, and for 103 after it."""
  return ladder.Ladder(arms, rates, 1030, 200, 10, **more)


def test_each_arm_gets_its_own_best_rate_beyond_those_given(train, tmp_path):
  found = ladder.run(made(), train, str(tmp_path / 'out'))
  # The dense arm also tries 4 and 8, and 4 is the best. The sparse arm also
  # tries 1/2.
  assert [rate for rate, *_ in found.rates['dense']] == [1, 2, 4, 8]
  assert [rate for rate, *_ in found.rates['sparse']] == [0.5, 1, 2]
  assert found.best == {'dense': 4, 'sparse': 1}
  assert [len(found.directories[arm]) for arm in found.best] == [2, 1]


def test_a_rate_that_diverges_is_a_neighbour(train, tmp_path):
  found = ladder.run(made((8.0, 16.0)), train, str(tmp_path / 'out'))
  assert found.rates['dense'][-1] == (16.0, 200, None, None)
  # The best rate is 4, so the score at 8 is 5 + |log2(8 / 4)| = 6.
  assert found.rates['dense'][-2] == (8.0, 200, 6.0, 3.0)
  assert found.best['dense'] == 4


def test_a_ladder_that_is_run_again_starts_nothing(train, tmp_path):
  first = ladder.run(made(at_once=2), train, str(tmp_path / 'out'))
  assert ladder.run(made(), train, str(tmp_path / 'out')) == first
  for path in (tmp_path / 'out').glob('*/*/started.txt'):
    assert path.read_text() == 'started\n', path


def test_a_run_of_another_command_is_not_taken_for_this_one(train, tmp_path):
  ladder.run(made(), train, str(tmp_path / 'out'))
  other = lambda bindings: train([*bindings, 'BATCH_SIZE=2'])
  with pytest.raises(ValueError, match=r'command.txt must hold .* --workdir'):
    ladder.run(made(), other, str(tmp_path / 'out'))


def test_an_error_of_a_run_ends_the_ladder_with_its_last_words(train, tmp_path):
  arms = (DENSE, Arm('broken', ('NUM_EXPERTS=3',), 1))
  with pytest.raises(ValueError, match='code 2: error: no disk'):
    ladder.run(made(arms=arms), train, str(tmp_path / 'out'))


def test_an_error_of_a_run_ends_the_runs_beside_it(train, tmp_path):
  arms = (
    Arm('slow', ('NUM_EXPERTS=wait',), 1),
    Arm('broken', ('NUM_EXPERTS=3', 'slow=True'), 1),
  )
  processes = []
  popen = ladder.subprocess.Popen
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      ladder.subprocess,
      'Popen',
      lambda *a, **k: processes.append(popen(*a, **k)) or processes[-1],
    )
    with pytest.raises(ValueError, match='no disk'):
      ladder.run(made((1.0,), arms, at_once=2), train, str(tmp_path / 'out'))
  assert [process.returncode for process in processes] == [75, 2]


@pytest.fixture
def stopped_in_wait(tmp_path):
  """Sends SIGTERM to this process when the run of the arm 'slow' waits."""

  def stop():
    while not list(tmp_path.glob('out/slow/*/waits')):
      if is_over.wait(0.02):
        return
    os.kill(os.getpid(), signal.SIGTERM)

  is_over, thread = threading.Event(), threading.Thread(target=stop)
  thread.start()
  yield
  is_over.set()
  thread.join()


SLOW = Arm('slow', ('NUM_EXPERTS=wait',), 1)


def test_a_signal_leaves_the_runs_that_have_ended(
  train, tmp_path, stopped_in_wait
):
  # The order is: dense, sparse and slow with seed 0, then dense with seed 1.
  plan = made((1.0,), (DENSE, SPARSE, SLOW))
  found = ladder.run(plan, train, str(tmp_path / 'out'))
  seeds = {
    arm: [pathlib.Path(path).name for path in paths]
    for arm, paths in found.directories.items()
  }
  only = ['1.03k_rate_1_seed_0']
  assert seeds == {'dense': only, 'sparse': only}
  assert found.missing == 2


def test_a_signal_before_two_arms_can_be_compared_ends_the_ladder(
  train, tmp_path, stopped_in_wait
):
  with pytest.raises(stop_signals.Stopped, match='SIGTERM'):
    ladder.run(made((1.0,), (DENSE, SLOW)), train, str(tmp_path / 'out'))


def test_arms_without_a_seed_of_the_first_arm_are_not_compared():
  entries = [
    ladder.Entry(arm, 1.0, 1030, seed)
    for arm, seed in ((DENSE, 0), (SPARSE, 0), (SLOW, 1))
  ]
  assert ladder._comparable(entries) == entries[:2]
  assert ladder._comparable(entries[::2]) == []


def test_the_steps_are_those_of_whole_evaluations():
  entry = ladder.Entry(SPARSE, 0.5, 1030, 7)
  # The 103 steps become 100, with an evaluation after each 20 steps. The
  # warm-up is 1% of 100 steps.
  assert made().bindings(entry) == [
    'NUM_EXPERTS=4', 'LEARNING_RATE=0.5', 'SEED=7', 'TRAIN_STEPS=100',
    'WARMUP_STEPS=1', 'EVAL_PERIOD=20', 'SAVE_PERIOD=20',
  ]  # fmt: skip


def test_an_arm_has_its_own_warm_up_in_each_run():
  slow = SPARSE._replace(warmup=0.05)
  for tokens, warmup in ((1030, 5), (200, 1)):
    bound = made().bindings(ladder.Entry(slow, 0.5, tokens, 0))
    assert f'WARMUP_STEPS={warmup}' in bound


def test_one_rate_needs_no_sweep():
  assert made((1.0,)).sweep == []


@pytest.mark.parametrize(
  'wrong', [{'tokens': 40}, {'at_once': 0}, {'learning_rates': (0.0,)}]
)
def test_numbers_out_of_range_are_refused(wrong):
  good = {'arms': (DENSE, SPARSE), 'learning_rates': (1.0,), 'tokens': 1000}
  with pytest.raises(ValueError, match='must be'):
    ladder.Ladder(**good | {'sweep_tokens': 200, 'tokens_per_step': 10} | wrong)
