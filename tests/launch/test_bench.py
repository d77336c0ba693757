"""Tests launch.bench, the command that measures layers and training steps."""

import json
import subprocess
import sys

import pytest

from launch import bench

TINY = ['--d_model=8', '--d_ff=16', '--tokens=64', '--group_size=8']
TINY += ['--rounds=2', '--json']
STEP = ['NUM_LAYERS=1', 'NUM_HEADS=1', 'NUM_KV_HEADS=1', 'HEAD_DIM=8']
STEP += ['D_MODEL=8', 'EXPERT_D_FF=8', 'VOCAB_SIZE=32', 'SEQUENCE_LENGTH=16']
STEP += ['BATCH_SIZE=8', 'GROUP_SIZE=16']
STEP = [f'--gin.{binding}' for binding in STEP]


def report_of(capsys, *argv):
  assert bench.main(argv) == 0
  return json.loads(capsys.readouterr().out)


def error_of(capsys, *argv):
  assert bench.main(argv) == 2
  return capsys.readouterr().err


def test_a_layer_alone_has_seconds_and_tokens_a_second(capsys):
  report = report_of(capsys, 'moe', *TINY)
  assert report['tokens_per_second'] == 64 / report['seconds']
  assert 'ratio' not in report
  seconds, speed, dropped = report['scores']
  assert (seconds['value'], seconds['n']) == (report['seconds'], 2)
  assert speed['value'] == report['tokens_per_second']
  assert (dropped['unit'], dropped['value']) == ('dropped share', 0.0)
  assert seconds['command'].startswith('python -m launch.bench moe ')


@pytest.mark.slow
@pytest.mark.parametrize('comparison', ['einsum', 'dropless', 'mesh'])
def test_compared_layers_give_the_same_numbers(capsys, comparison):
  report = report_of(capsys, 'moe', f'--compare={comparison}', *TINY)
  assert report['largest_difference'] < 1e-5
  assert report['ratio'] > 0
  assert [run['dropped'] for run in report['runs']] == [0.0, 0.0]


@pytest.mark.slow
def test_the_share_beyond_products_is_the_rest_of_the_time(capsys):
  report = report_of(capsys, 'moe', '--compare=parts', *TINY)
  assert report['share_beyond_products'] == 1 - report['ratio']
  # There are 8 groups and 8 experts. An expert has ceil(1.25 * 8 * 2 / 8) = 3
  # slots in each group.
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
  # Sorted has 3 slots per expert and group where 2 suffice. So at most 2/3 of
  # its products are useful.
  [([], 'Dropless', 1.0), (['--dispatch=Sorted'], 'Sorted', 2 / 3)],
)
def test_against_dense_products_a_layer_leaves_no_slot_empty(
  capsys, flags, dispatch, most
):
  report = report_of(capsys, 'moe', '--compare=dense', *flags, *TINY)
  assert (report['dispatch'], report['most_possible']) == (dispatch, most)


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


def test_without_the_tpu_compiler_an_error_says_what_to_install(
  capsys, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'libtpu', None)  # `import libtpu` now fails.
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
  # In the comparison of meshes, equal drop rates show that one device and eight
  # do the same work.
  assert len({run.get('dropped') for run in report['runs']}) == 1


def test_help_needs_no_jax():
  program = (
    'import sys, launch.bench as m\n'
    'try: m.main(["step", "--help"])\n'
    'except SystemExit: sys.exit("jax" in sys.modules)\n'
  )
  assert subprocess.run([sys.executable, '-c', program]).returncode == 0


@pytest.mark.slow
def test_muon_is_compared_with_adamw_in_time_and_in_flops(capsys):
  argv = ['step', '--compare=muon', '--rounds=2', '--json', *STEP]
  adamw, muon = report_of(capsys, *argv)['runs']
  assert adamw['name'] == 'AdamW'
  # The number in the name is the FLOPs of a step with Muon, divided by those of
  # a step with AdamW.
  assert float(muon['name'].split()[1]) > 1
