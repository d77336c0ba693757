"""Checks and warnings before a run starts anything long."""

import dataclasses
import json
import logging
import types

import pytest

from launch.configs import configuration
from moe.modalities.ids import IdSpace
from moe.runs import preflight
from moe.runs.run import Initial


def test_a_resumed_run_names_its_changed_settings(tmp_path, caplog):
  caplog.set_level(logging.INFO, 'moe')
  meta = {'step': 7, 'seed': 0, 'batch_size': 16, 'sequence_length': 128}
  path = tmp_path / 'checkpoints/7/meta/metadata'
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps(meta))
  run = configuration.load(['runs/quickstart.gin'], [])
  preflight.check_resumed(run, str(tmp_path), ['LEARNING_RATE 0.25 -> 0.5'])
  assert caplog.messages == [
    f'warning: {tmp_path} resumes with settings that differ from its'
    ' config.gin: LEARNING_RATE 0.25 -> 0.5'
  ]


@pytest.mark.parametrize('key', ['vocabulary_sha256', 'manifest_hash'])
def test_a_run_does_not_resume_with_other_data(key):
  with pytest.raises(ValueError, match='must be the same as before in run'):
    preflight.check_saved({key: 'a'}, {key: 'b'}, 'run')


@pytest.fixture
def origin(tmp_path):
  """A function that saves a run's data hashes, and returns its `Initial`."""
  path = tmp_path / 'checkpoints/7/meta/metadata'
  path.parent.mkdir(parents=True)

  def record(**hashes):
    path.write_text(json.dumps({'step': 7, **hashes}))
    return Initial(str(tmp_path))

  return record


TABLES = {'embedding': {'table': ('vocab', 'embed')}, 'norm': ('embed',)}
VOCABULARY = {'vocabulary_sha256': 'v' * 64}


def check_origin(initial, **hashes):
  run = configuration.load(['runs/quickstart.gin'], [])
  run = dataclasses.replace(run, initial=initial)
  program = types.SimpleNamespace(logical_axes=TABLES)
  preflight.check_origin(run, program, hashes)


@pytest.mark.parametrize(
  ('theirs', 'ours', 'what'),
  [
    (VOCABULARY, {'vocabulary_sha256': 'w' * 64}, 'the vocabulary'),
    (
      {**VOCABULARY, 'ids_sha256': 'a' * 64},
      {**VOCABULARY, 'ids_sha256': 'b' * 64},
      'the id space',
    ),
  ],
)
def test_a_run_does_not_start_from_rows_of_other_tokens(
  origin, theirs, ours, what
):
  initial = origin(**theirs)
  with pytest.raises(ValueError, match=f'must be of {what} of the data') as e:
    check_origin(initial, **ours)
  assert "('embedding/table', None)" in str(e.value)
  anew = (('embedding/.*', None),)
  check_origin(dataclasses.replace(initial, assignment=anew), **ours)
  check_origin(initial, **theirs)


def test_text_has_its_ids_in_every_id_space(origin):
  check_origin(origin(**VOCABULARY), **VOCABULARY, ids_sha256='a' * 64)
  check_origin(origin(**VOCABULARY, ids_sha256='a' * 64), **VOCABULARY)


@pytest.mark.parametrize(
  ('overrides', 'warning'),
  [
    ([], ''),
    (['ROUTER=@gates.ExpertChoice'], 'not a likelihood'),
    (['ROUTER=@gates.Base', 'TOP_K=1'], 'token by token in evaluation'),
    (['ROUTER=@gates.ExpertChoice', 'DENSE_TWIN=True'], ''),
  ],
)
def test_a_router_that_looks_ahead_gives_a_warning(caplog, overrides, warning):
  caplog.set_level(logging.INFO, 'moe')
  run = configuration.load(['runs/quickstart.gin'], overrides)
  preflight.warn_of_router(run)
  assert len(caplog.messages) == bool(warning)
  assert warning in caplog.text


def test_the_check_of_a_work_directory_leaves_no_file(tmp_path):
  preflight.open_workdir(str(tmp_path / 'run'))
  assert list((tmp_path / 'run').iterdir()) == []


@pytest.mark.parametrize('name', ['back\\slash', 'latin-\udce9'])
def test_a_name_that_checkpoints_cannot_have_is_refused(tmp_path, name):
  with pytest.raises(ValueError, match='UTF-8 without a backslash'):
    preflight.open_workdir(str(tmp_path / name))
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('saved', 'warnings'),
  [
    ({}, []),
    ({'held_out': {'a': '1', 'b': '2'}}, []),
    (
      {'held_out': {'a': '0', 'b': '2'}},
      ['held-out documents of a have changed since step 7'],
    ),
    ({'held_out': {'a': '1', 'b': '0'}}, ['held-out documents of b have']),
    ({'held_out': {'b': '2', 'a': '1'}}, ['ranked by b up to step 7']),
  ],
)
def test_changed_held_out_documents_give_a_warning(caplog, saved, warnings):
  caplog.set_level(logging.INFO, 'moe')
  preflight.warn_of_held_out({'step': 7, **saved}, {'a': '1', 'b': '2'}, 'run')
  assert len(caplog.messages) == len(warnings)
  for message, fragment in zip(caplog.messages, warnings, strict=True):
    assert message.startswith('warning: ') and fragment in message


def test_held_out_codes_must_be_of_the_tokenizer_of_the_training():
  space = lambda sha256: IdSpace(
    300, command=1, image=9, tokenizers=(('image', sha256),)
  )
  store = lambda ids: types.SimpleNamespace(manifest=ids.in_manifest())
  text = types.SimpleNamespace(manifest={'vocab_size': 300})
  preflight.check_evaluation(space('a1'), 'draw', [store(space('a1')), text])
  with pytest.raises(ValueError, match='draw of EVAL_TASKS .* one tokenizer'):
    preflight.check_evaluation(space('a1'), 'draw', [store(space('b2'))])
