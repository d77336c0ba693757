"""The plan of a folding run: parameters from shapes, the rest compiled."""

import json

import pytest

from launch import plan as plan_verb
from launch.configs import configuration
from moe.planning import folding_plan, report
from moe.scale import topology

NANO = ['models/fold_nano.gin', 'parallel/data.gin', 'runs/folding.gin']
SIZES = ['CROP=8', 'BATCH_SIZE=4', 'TRAIN_STEPS=100', "CHAINS=('chains',)"]
ESMFOLD = ['runs/esmfold_v5p_16.gin']


@pytest.fixture(scope='module')
def facts():
  return folding_plan.plan(configuration.read(NANO, SIZES).run, None)


def test_the_parts_add_up_to_the_parameters(facts):
  parts = facts['components']
  for key in ('total', 'active'):
    together = sum(part[key] for part in parts.values())
    assert together == facts[f'params_{key}']
  # A token chooses 2 of 4 experts.
  experts = parts['experts of the trunk']
  assert experts['total'] == 2 * experts['active'] > 0
  assert parts['folding blocks']['total'] > 0
  assert parts['structure module']['total'] > 0


def test_the_residues_of_the_run_by_hand(facts):
  assert facts['residues_per_step'] == 4 * 8
  assert facts['residues'] == 100 * 4 * 8


def test_the_text_of_the_command_has_parts_and_residues(capsys, facts):
  argv = [f'--gin_file={name}' for name in NANO]
  argv += [f'--gin.{size}' for size in SIZES]
  assert plan_verb.main([*argv, '--json']) == 0
  assert json.loads(capsys.readouterr().out) == facts
  text = report.text(facts)
  assert 'structure module' in text and 'residues per step' in text
  assert 'MFU' not in text


def test_a_run_that_is_neither_is_refused(capsys):
  assert plan_verb.main(['--gin_file=runs/image_tokenizer_emoji.gin']) == 2
  assert 'must describe a language model' in capsys.readouterr().err


@pytest.mark.optimized
@pytest.mark.nightly
def test_a_step_is_compiled_for_four_chips(monkeypatch, tmp_path):
  pytest.importorskip('libtpu')
  monkeypatch.setenv('WUDAO_CACHE', str(tmp_path))
  sizes = [*SIZES, 'CROP=16', 'MESH_EXPERT=2', 'RECYCLES=0']
  run = configuration.read(NANO, sizes).run
  facts = folding_plan.plan(run, topology.parse('v5p:2x2x1'))
  assert facts['chips'] == 4 and facts['mesh'] == {'data': 2, 'expert': 2}
  assert 0 < facts['argument_bytes'] < facts['peak_bytes']
  assert facts['collectives'] and facts['step_seconds_no_overlap'] > 0
  assert 'step without overlap' in report.text(facts)


@pytest.mark.nightly
@pytest.mark.optimized
@pytest.mark.parametrize('sizes', [[], ['CROP=1024', 'BATCH_SIZE=16']])
def test_esmfold_fits_16_chips_with_a_tenth_of_memory_free(
  monkeypatch, tmp_path, sizes
):
  pytest.importorskip('libtpu')
  monkeypatch.setenv('WUDAO_CACHE', str(tmp_path))
  run = configuration.read(ESMFOLD, sizes).run
  facts = folding_plan.plan(run, topology.parse('v5p:2x2x4'))
  assert facts.get('headroom', 0) >= 0.1, facts.get('does_not_fit')
