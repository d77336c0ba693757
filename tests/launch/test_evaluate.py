"""Tests launch.evaluate, which prints scores or refuses bad input."""

import json
import math
import shutil

import jax
import numpy as np
import pytest

from launch import evaluate, train
from launch.configs import configuration
from moe.data.store import write_store
from moe.infer import decode
from moe.modalities.text import Vocabulary
from moe.runs import scoring, trained
from moe.train import record_log
from tests.launch import tiny_run

# Nats per token of a uniform model with 320 tokens.
UNIFORM_NATS = math.log(320)


def run_main(capsys, *flags):
  """Runs launch.evaluate; returns (exit code, JSON or None, standard error)."""
  code = evaluate.main([*map(str, flags), '--json'])
  out, err = capsys.readouterr()
  return code, json.loads(out) if out else None, err


@pytest.fixture
def text_file(tmp_path):
  path = tmp_path / 'texts.txt'
  # The last document is longer than the context.
  lines = ['春眠不覺曉', '花\\n落龘', '', '夜來風雨聲，' * 25]
  path.write_text('\n'.join(lines), encoding='utf-8')
  return path


@pytest.mark.slow
def test_a_stride_of_a_whole_window_gives_the_score_of_training(
  tmp_path, capsys
):
  pytest.importorskip('seqio')
  steps = [
    f'--gin.{n}=2' for n in ('TRAIN_STEPS', 'EVAL_PERIOD', 'SAVE_PERIOD')
  ]
  # The 8 devices of the tests need a batch of 8 rows.
  sizes = ['--gin.BATCH_SIZE=8', '--gin.WARMUP_STEPS=1']
  flags = [*tiny_run.FLAGS, *steps, *sizes]
  assert train.main([*flags, f'--workdir={tmp_path}']) == 0
  capsys.readouterr()
  found = record_log.read(tmp_path / 'eval.jsonl')[-1]['eval']
  flags = [f'--checkpoint={tmp_path}', '--task=builtin_couplets']
  code, report, _ = run_main(capsys, *flags, '--stride=32')
  assert code == 0
  recorded = found['builtin_couplets']['bits_per_char']
  assert report['bits_per_char'] == pytest.approx(recorded, rel=1e-5)


def test_a_uniform_model_has_the_scores_worked_out_by_hand(
  capsys, tmp_path, uniform_directory
):
  # The first document has 3 tokens: 春, 眠 and the end mark. The second has 7:
  # 花, a line break, 落, the three bytes of 龘 and the end mark. There are
  # 2 + 4 characters and 6 + (3 + 1 + 3 + 3) bytes.
  path = tmp_path / 'texts.txt'
  path.write_text('春眠\n花\\n落龘\n', encoding='utf-8')
  code, report, _ = run_main(
    capsys, f'--checkpoint={uniform_directory}', f'--text_file={path}'
  )
  assert code == 0
  nats = 10 * UNIFORM_NATS
  scores = [(s['name'], s['value'], s['n']) for s in report.pop('scores')]
  assert scores == [
    (name, report[name], 2) for name in ('bits_per_char', 'bits_per_byte')
  ]
  assert report == {
    'nats': pytest.approx(nats),
    'bits_per_char': pytest.approx(nats / math.log(2) / 6),
    'bits_per_byte': pytest.approx(nats / math.log(2) / 16),
    'tokens': 10,
    'chars': 6,
    'bytes': 16,
    'documents': 2,
    'unknown_tokens': 0,
    'checkpoint': str(uniform_directory),
    'step': 7,
    'sequence_length': 64,
    'stride': 32,
  }


def test_the_score_is_that_of_the_forward_pass(capsys, tmp_path, run_directory):
  path = tmp_path / 'texts.txt'
  path.write_text('春眠不覺曉', encoding='utf-8')
  _, report, _ = run_main(
    capsys, f'--checkpoint={run_directory}', f'--text_file={path}'
  )
  place = trained.find(str(run_directory))
  config = configuration.load([place.config], [])
  run = trained.read_back(config, place, jax.devices()[:1])
  ids = run.vocabulary.encode('春眠不覺曉')

  @jax.jit
  def read(params, tokens):
    length = jax.numpy.array([6], 'int32')
    batch = decode.read_batch(tokens, length, jax.numpy.zeros_like(length))
    outputs = run.functional.apply(params, run.state, batch, None, False)
    return run.functional.head(params, outputs.hidden)[0]

  logits = read(run.params, np.array([[0, *ids]], np.int32))
  logits = np.asarray(logits, np.float64)
  log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  nats = -log_probs[np.arange(6), [*ids, 1]].sum()
  assert report['nats'] == pytest.approx(nats, rel=1e-5)


@pytest.mark.slow
def test_the_score_does_not_depend_on_the_batch_size(
  capsys, run_directory, text_file
):
  flags = (f'--checkpoint={run_directory}', f'--text_file={text_file}')
  _, default, _ = run_main(capsys, *flags)
  _, single, _ = run_main(capsys, *flags, '--batch_size=1')
  assert default['nats'] == pytest.approx(single['nats'], rel=1e-6)
  assert default['nats'] != pytest.approx(
    default['tokens'] * UNIFORM_NATS, 1e-3
  )


@pytest.mark.slow
def test_a_comparison_reports_both_models_and_the_difference(
  capsys, run_directory, uniform_directory, text_file
):
  code, report, _ = run_main(
    capsys,
    f'--checkpoint={run_directory}',
    f'--compare={uniform_directory}',
    f'--text_file={text_file}',
  )
  other = report['compare']
  assert code == 0
  assert other['nats'] == pytest.approx(other['tokens'] * UNIFORM_NATS)
  difference = report['bits_per_char'] - other['bits_per_char']
  assert other['difference'] == pytest.approx(difference)
  assert other['low'] <= difference <= other['high']
  assert other['num_resamples'] == 10_000
  *_, last = report['scores']
  assert (last['name'], last['low']) == ('difference', other['low'])


def test_without_json_the_scores_are_a_table(
  capsys, uniform_directory, text_file
):
  directory = str(uniform_directory)
  flags = [f'--checkpoint={directory}', f'--text_file={text_file}']
  assert evaluate.main([*flags, f'--compare={directory}', '--limit=2']) == 0
  out, _ = capsys.readouterr()
  assert 'documents                           2                     2' in out
  assert 'resamples of 2 documents' in out
  assert 'difference of +0.0000 bits per character' in out
  assert out.endswith(
    f'python -m launch.evaluate {" ".join(flags)}'
    f' --compare={directory} --limit=2\n'
  )


def test_one_document_has_a_difference_without_an_interval():
  other = {'documents': 1, 'difference': 0.5, 'low': None, 'high': None}
  text = scoring.as_text({'documents': 1, 'compare': other, 'scores': []})
  assert text.splitlines()[1] == (
    'difference of +0.5000 bits per character; one document gives no interval'
  )


@pytest.fixture
def store(cache_dir, run_directory):
  """A vocabulary's directory with a store of two documents.

  The second document has a prompt.
  """
  vocabulary = Vocabulary(run_directory / 'vocabulary.model')
  directory = cache_dir / 'any_name'
  tokens = [vocabulary.encode(text) for text in ('春眠不覺曉', '夜來\n風雨聲')]
  records = [
    {
      'tokens': np.array([*tokens[0], 1], np.uint16),
      'num_chars': np.int64(5),
      'num_bytes': np.int64(15),
    },
    {
      'tokens': np.array([*tokens[1], 1], np.uint16),
      'loss_weights': np.array([0, 0, 0, 1, 1, 1, 1], np.uint8),
      'num_chars': np.int64(3),
      'num_bytes': np.int64(9),
    },
  ]
  write_store(
    directory / 'made_up' / 'validation',
    records,
    lambda: {'vocabulary_sha256': vocabulary.sha256, 'origin': {}},
  )
  shutil.copy(run_directory / 'vocabulary.model', directory)
  yield directory
  shutil.rmtree(directory)


def test_a_task_is_read_from_the_store_of_the_same_vocabulary(
  capsys, uniform_directory, store
):
  flags = (f'--checkpoint={uniform_directory}', '--task=made_up')
  code, report, _ = run_main(capsys, *flags)
  # The first document has 6 scored tokens. The second has 4 after its prompt.
  assert code == 0
  assert report['nats'] == pytest.approx(10 * UNIFORM_NATS)
  assert (report['tokens'], report['chars'], report['bytes']) == (10, 8, 24)
  _, report, _ = run_main(capsys, *flags, '--limit=1')
  assert (report['documents'], report['chars']) == (1, 5)


def test_a_task_and_a_text_file_of_its_documents_have_equal_scores(
  capsys, tmp_path, run_directory, store
):
  path = tmp_path / 'texts.txt'
  path.write_text('春眠不覺曉', encoding='utf-8')
  checkpoint = f'--checkpoint={run_directory}'
  _, task, _ = run_main(capsys, checkpoint, '--task=made_up', '--limit=1')
  _, text, _ = run_main(capsys, checkpoint, f'--text_file={path}')
  for report in (task, text):
    for score in report['scores']:
      del score['command']
  assert task == text


@pytest.mark.slow
def test_a_task_without_a_store_is_tokenised_first(
  capsys, uniform_directory, cache_dir
):
  flags = (f'--checkpoint={uniform_directory}', '--task=builtin_couplets')
  code, report, _ = run_main(capsys, *flags)
  assert code == 0
  assert report['nats'] == pytest.approx(report['tokens'] * UNIFORM_NATS)
  # The two lines of a couplet are equally long, and a line break lies between
  # them. So a couplet has an odd number of characters. The total is odd exactly
  # if the number of couplets is odd.
  assert report['chars'] % 2 == report['documents'] % 2
  assert list(cache_dir.glob('*/builtin_couplets/validation/manifest.json'))


@pytest.mark.slow
def test_an_unknown_split_is_refused(capfd, uniform_directory):
  flags = [f'--checkpoint={uniform_directory}', '--task=builtin_couplets']
  with pytest.raises(SystemExit) as error:
    evaluate.main([*flags, '--split=test'])
  assert error.value.code == 2
  out, err = capfd.readouterr()
  assert not out
  assert 'test' in err.strip().split('\n')[-1]


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--task=builtin_couplet'], 'did you mean builtin_couplets'),
    (
      ['--task=t', '--task_module=no.such'],
      "'no.such' must be one that Python",
    ),
  ],
)
def test_a_misspelt_task_is_refused_before_the_model_is_read(
  capfd, monkeypatch, uniform_directory, flags, message
):
  monkeypatch.setattr(configuration, 'load_run', None)
  assert evaluate.main([f'--checkpoint={uniform_directory}', *flags]) == 2
  out, err = capfd.readouterr()
  assert not out and err.count('\n') == 1 and message in err


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, 'must be a file to read: No such file'),
    (b'\n\n', 'at least one document, got none'),
    ('春\n'.encode() + b'ab\xe6\x98', ':2: a text file must be UTF-8, got byte '
     '0xe6 at place 3 of the line'),
  ],
)  # fmt: skip
def test_an_unfit_text_file_is_refused(
  capsys, tmp_path, uniform_directory, content, message
):
  path = tmp_path / 'texts.txt'
  if content is not None:
    path.write_bytes(content)
  code, report, err = run_main(
    capsys, f'--checkpoint={uniform_directory}', f'--text_file={path}'
  )
  assert (code, report) == (2, None)
  assert err.startswith('error: ') and err.count('\n') == 1
  assert message in err


@pytest.mark.parametrize('flag', ['--checkpoint', '--compare'])
def test_a_missing_checkpoint_is_refused(
  capsys, tmp_path, uniform_directory, text_file, flag
):
  flags = {'--checkpoint': uniform_directory, flag: tmp_path}
  code, report, err = run_main(
    capsys,
    f'--text_file={text_file}',
    *(f'{name}={value}' for name, value in flags.items()),
  )
  assert (code, report) == (2, None)
  assert f'{tmp_path} must be the directory of a run' in err
  assert err.count('\n') == 1


def test_a_vocabulary_other_than_that_of_the_checkpoint_is_refused(
  capsys, tmp_path, run_directory, text_file
):
  from moe.modalities.text import train_vocabulary

  directory = tmp_path / 'run'
  shutil.copytree(run_directory, directory)
  train_vocabulary(['a b'], 300, directory / 'vocabulary.model')
  code, _, err = run_main(
    capsys, f'--checkpoint={directory}', f'--text_file={text_file}'
  )
  assert code == 2
  assert 'must be the vocabulary that step 7 was trained with' in err


def test_a_stride_that_skips_tokens_is_refused(
  capsys, uniform_directory, text_file
):
  code, _, err = run_main(
    capsys,
    f'--checkpoint={uniform_directory}',
    f'--text_file={text_file}',
    '--stride=65',
  )
  assert code == 2
  assert 'stride must be from 1 to the sequence length 64, got 65' in err
