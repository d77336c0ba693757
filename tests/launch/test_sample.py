"""Tests forms, seeds and errors of launch.sample."""

import re

import pytest

from launch import sample
from moe.infer import forms


def run_main(capsys, directory, *flags):
  """Runs launch.sample; returns (exit code, samples, standard error)."""
  code = sample.main([f'--checkpoint={directory}', *flags])
  out, err = capsys.readouterr()
  return code, out.split('\n\n')[:-1], err


# The line break after the title is optional.
@pytest.mark.parametrize(
  ('form', 'lines', 'prompt'),
  [
    ('quatrain5', 2, '題'),
    pytest.param('octave5', 4, '題\\n', marks=pytest.mark.slow),
  ],
)
def test_a_poem_has_its_form_after_its_title(
  capsys, run_directory, form, lines, prompt
):
  flags = (f'--form={form}', f'--prompt={prompt}', '--num=3')
  code, samples, _ = run_main(capsys, run_directory, *flags)
  assert code == 0
  line = '字' * int(form[-1])
  for poem in samples:
    title, body = poem.split('\n')
    assert title == '題'
    assert forms.shape(body) == f'{line}，{line}。' * lines
  assert len(set(samples)) == 3


def test_a_couplet_answers_its_first_line(capsys, run_directory):
  code, (couplet,), _ = run_main(
    capsys, run_directory, '--form=couplet', '--prompt=處處，聞啼鳥'
  )
  first, second = couplet.split('\n')
  assert (code, first) == (0, '處處，聞啼鳥')
  assert forms.shape(second) == '字字，字字字'


@pytest.mark.slow
def test_the_same_seed_gives_the_same_samples(capsys, run_directory):
  flags = ('--prompt=春\\n', '--num=2', '--max_tokens=9', '--top_p=0.95')
  _, first, _ = run_main(capsys, run_directory, *flags, '--seed=3')
  assert run_main(capsys, run_directory, *flags, '--seed=3')[1] == first
  assert run_main(capsys, run_directory, *flags, '--seed=4')[1] != first


def test_standard_error_names_the_step_and_cut_samples(capsys, run_directory):
  flags = ('--prompt=春', '--max_tokens=2', '--num=4')
  code, samples, err = run_main(capsys, run_directory, *flags)
  assert (code, len(samples)) == (0, 4)
  assert err.split('\n')[0] == f'{run_directory}, step 7'
  assert 'sample 1 was cut after token 2' in err


def test_greedy_sampling_from_equal_chances_takes_the_lowest_id(
  capsys, uniform_directory
):
  # All logits are equal, so the lowest id that may be drawn is chosen. Padding,
  # id 0, may not be drawn, so the end mark, id 1, is chosen.
  flags = ('--prompt=春眠', '--temperature=0')
  code, samples, _ = run_main(capsys, uniform_directory, *flags)
  assert (code, samples) == (0, ['春眠'])


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--prompt='], '--prompt must hold some text'),
    (['--prompt=' + '春' * 64], 'context of 64 tokens, got 64 and up to 1'),
    (['--prompt=春', '--max_tokens=64'], 'got 1 and up to 64'),
    (['--prompt=春' * 8, '--max_tokens=0'], '--max_tokens must be at least 1'),
    (['--prompt=春', '--num=0'], '--num must be at least 1, got 0'),
    (['--prompt=春', '--form=sonnet'], "one of couplet, .* got 'sonnet'"),
    (['--prompt=', '--form=quatrain5'], '--prompt must hold some text'),
    (['--prompt=a', '--form=couplet'], "punctuation only, got 'a'"),
    (['--prompt=春', '--form=couplet', '--max_tokens=3'], 'leave out --max'),
    (['--prompt=春！', '--form=couplet'], "have a piece for '！'"),
    (['--prompt=春', '--form=octave7'], 'got 2 and up to 65'),
    (['--prompt=春', '--top_p=2'], 'top_p=2.0 must be above 0'),
  ],
)
def test_what_cannot_be_written_is_refused(
  capsys, run_directory, flags, message
):
  code, samples, err = run_main(capsys, run_directory, *flags)
  assert (code, samples) == (2, [])
  assert err.startswith('error: ') and err.count('\n') == 1
  assert re.search(message, err)


def test_a_missing_checkpoint_is_refused(capsys, tmp_path):
  code, samples, err = run_main(capsys, tmp_path / 'none', '--prompt=春')
  assert (code, samples) == (2, [])
  assert 'must be the directory of a run' in err
