"""The command that measures layers and training steps."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from launch import bench
from launch.benchmarks import moe as bench_layer
from launch.benchmarks import pairs, step
from launch.benchmarks.pairs import Program, measure
from moe.routing import dispatch
from moe.routing.plan import RouterInputs

TINY = ['--d_model=8', '--d_ff=16', '--tokens=64', '--group_size=8']
TINY += ['--rounds=2', '--json']
STEP = ['NUM_LAYERS=1', 'NUM_HEADS=1', 'NUM_KV_HEADS=1', 'HEAD_DIM=8']
STEP += ['D_MODEL=8', 'EXPERT_D_FF=8', 'VOCAB_SIZE=32', 'SEQUENCE_LENGTH=16']
STEP += ['BATCH_SIZE=8', 'GROUP_SIZE=16']
STEP = [f'--gin.{binding}' for binding in STEP]


def playing(name, *seconds):
  """A program whose samples take these seconds."""
  return Program(name, iter(seconds).__next__)


def report_of(capsys, *argv):
  assert bench.main(argv) == 0
  return json.loads(capsys.readouterr().out)


def error_of(capsys, *argv):
  assert bench.main(argv) == 2
  return capsys.readouterr().err


def test_a_ratio_is_the_median_over_rounds_not_the_ratio_of_medians():
  # Ratios within rounds: 2, 3, 1. Medians over rounds: 4 and 8, thus 2 as well
  # for the ratio, but for speeds 1/2, 1/3, 1 and their median 1/2.
  ours, theirs = (2.0, 4.0, 8.0), (4.0, 12.0, 8.0)
  report = measure([playing('a', *ours), playing('b', *theirs)], 3, '')
  assert report['ratio'] == 2.0
  assert report['spread'] == [1.5, 2.5]
  slow = (2.0, 4.0, 100.0), (6.0, 12.0, 100.0)
  report = measure([playing('a', *slow[0]), playing('b', *slow[1])], 3, '')
  assert report['ratio'] == 3.0
  speed = measure([playing('a', *ours), playing('b', *theirs)], 3, '', 24, True)
  assert speed['ratio'] == 0.5
  assert speed['tokens_per_second'] == 24 / 8


def test_programs_take_turns():
  order = []
  programs = [
    Program(name, lambda name=name: order.append(name) or 1.0) for name in 'ab'
  ]
  measure(programs, 2, '')
  assert ''.join(order) == 'abab'


def test_of_another_program_the_best_speed_counts():
  sample = pairs.command(
    'echo eager: 1.0M parameters, 20 tokens/s; echo grouped: 40 tokens/s;'
    ' echo slow: 1e1 tokens/s',
    tokens=80,
  )
  assert sample() == 2.0


@pytest.mark.parametrize(
  'command', ['echo 5 tokens/s; exit 3', 'echo no speed at all']
)
def test_another_program_that_fails_is_an_error(command):
  with pytest.raises(ValueError, match="must succeed and print 'N tokens/s'"):
    pairs.command(command, tokens=1)()


def test_a_layer_alone_has_seconds_and_tokens_a_second(capsys):
  report = report_of(capsys, 'moe', *TINY)
  assert report['tokens_per_second'] == 64 / report['seconds']
  assert 'ratio' not in report


@pytest.mark.slow
@pytest.mark.parametrize('comparison', ['einsum', 'dropless', 'mesh'])
def test_what_is_compared_yields_the_same_numbers(capsys, comparison):
  report = report_of(capsys, 'moe', f'--compare={comparison}', *TINY)
  assert report['largest_difference'] < 1e-5
  assert report['ratio'] > 0
  assert [run['dropped'] for run in report['runs']] == [0.0, 0.0]


@pytest.mark.slow
def test_the_share_beyond_products_is_what_they_do_not_take(capsys):
  report = report_of(capsys, 'moe', '--compare=parts', *TINY)
  assert report['share_beyond_products'] == 1 - report['ratio']
  # 8 groups of 8 experts with room for ceil(1.25 * 8 * 2 / 8) = 3 rows.
  assert report['slots'] == 8 * 8 * 3
  assert report['rows'] == 64 * 2
  _, needed, layer = report['runs']
  share = 1 - needed['seconds'] / layer['seconds']
  assert report['share_beyond_needed_products'] == share


@pytest.mark.slow
def test_a_layer_without_empty_slots_has_one_share(capsys):
  argv = 'moe', '--compare=parts', '--dispatch=Dropless', *TINY
  report = report_of(capsys, *argv)
  assert len(report['runs']) == 2
  assert report['slots'] == report['rows']


@pytest.mark.slow
@pytest.mark.parametrize(
  ('flags', 'dispatch', 'most'),
  # Room for 3 rows where 2 are needed: of 3 products, 2 are of use.
  [([], 'Dropless', 1.0), (['--dispatch=Sorted'], 'Sorted', 2 / 3)],
)
def test_against_dense_products_a_layer_leaves_no_slot_empty(
  capsys, flags, dispatch, most
):
  report = report_of(capsys, 'moe', '--compare=dense', *flags, *TINY)
  assert (report['dispatch'], report['most_possible']) == (dispatch, most)


def test_finer_experts_do_the_same_work():
  sizes = bench_layer.Sizes(8, 32, 4, 2, 64, 16, 1.25, 'float32')
  finer = sizes.finer(4)
  assert (finer.experts, finer.top_k, finer.d_ff) == (16, 8, 8)
  assert finer.top_k * finer.d_ff == sizes.top_k * sizes.d_ff


@pytest.mark.slow
@pytest.mark.parametrize(('experts', 'top_k'), [(8, 2), (8, 1), (4, 3)])
def test_balanced_routing_gives_each_expert_equal_rows(experts, top_k, key):
  G, M = 2, 16
  zeros_GM = jnp.zeros((G, M), jnp.int32)
  logits_GME = jax.random.normal(key, (G, M, experts))
  inputs = RouterInputs(
    logits_GME, logits_GME, zeros_GM, zeros_GM, zeros_GM == 0, M
  )
  router = bench_layer.Balanced(num_active=top_k, renormalize=top_k > 1)
  plan = router.route(inputs, {}, jax.random.split(key, G), True)
  for expert_R in plan.expert_GR:
    assert set(jnp.bincount(expert_R).tolist()) == {M * top_k // experts}


@pytest.mark.slow
def test_a_layer_gives_gradients_of_all_its_parameters():
  sizes = bench_layer.Sizes(8, 8, 4, 2, 32, 16, 1.0, 'float32')
  layer = bench_layer.make_layer(sizes, dispatch.Sorted)
  arguments = layer.init(jax.random.key(0))
  _, gradients, _ = layer.jitted(*arguments)
  assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(
    jnp.shape, arguments[:2]
  )
  assert all(jnp.any(g != 0) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['moe', '--tokens=12', '--group_size=8'], '--tokens=12 must be a mult'),
    (['moe', '--dispatch=Sort'], "--dispatch=Sort must be one of ['Sorted'"),
    (['moe', '--exchange=Experts'], '--exchange=Experts must be one of'),
    (['moe', '--rounds=0'], '--rounds=0 must be at least 1'),
    (['imports', '--runs=0'], '--runs=0 must be at least 1'),
    (['imports', 'moe.trainer'], 'moe.trainer must be a module of moe'),
    (['step', '--compare=mesh', '--against=true'], 'exclude each other'),
  ],
)
def test_mistakes_are_one_sentence(capsys, argv, message):
  assert message in error_of(capsys, *argv)


def test_gin_flags_are_for_steps_alone(capsys):
  with pytest.raises(SystemExit):
    bench.main(['moe', '--gin.TOP_K=1'])
  assert '--gin. flags; they are for step' in capsys.readouterr().err


def test_without_the_compiler_of_tpus_it_says_what_to_install(
  capsys, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'libtpu', None)  # its import fails
  error = error_of(capsys, 'moe', '--compare=tpu')
  assert 'needs the package libtpu' in error


@pytest.mark.slow
def test_a_step_is_timed_against_another_program(capsys):
  report = report_of(
    capsys, 'step', '--rounds=1', '--json', '--against=echo 64 tokens/s', *STEP
  )
  theirs, ours = report['runs']
  assert theirs['seconds'] == 8 * 16 / 64
  assert report['ratio'] == theirs['seconds'] / ours['seconds']


@pytest.mark.slow
@pytest.mark.parametrize('comparison', ['mesh', 'compile'])
def test_steps_are_compared(capsys, comparison):
  report = report_of(
    capsys, 'step', '--rounds=1', '--json', f'--compare={comparison}', *STEP
  )
  assert report['ratio'] > 0
  # The same work is done on one device and on eight.
  assert len({run.get('dropped') for run in report['runs']}) == 1


def test_a_random_batch_asks_for_the_next_token():
  batch = step.random_batch(2, 8, vocab_size=5)
  assert (batch.tokens[:, 1:] == batch.targets[:, :-1]).all()
  assert batch.tokens.max() < 5
  assert batch.loss_weights.sum() == 16


def test_help_needs_no_jax():
  program = (
    'import sys, launch.bench as m\n'
    'try: m.main(["step", "--help"])\n'
    'except SystemExit: sys.exit("jax" in sys.modules)\n'
  )
  assert subprocess.run([sys.executable, '-c', program]).returncode == 0
