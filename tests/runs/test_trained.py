"""A run that was trained on eight devices is read on eight and on one."""

import shutil

import jax
import numpy as np
import pytest

from launch.configs import configuration
from moe.checkpoint import save
from moe.runs import build, scoring, trained, writing
from tests.conftest import write_run

MESH = {'MESH_DATA': 1, 'MESH_FSDP': -1, 'MESH_EXPERT': 2}


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  # The weights are larger than usual, so that positions have different logits.
  return write_run(tmp_path_factory.mktemp('runs') / 'meshes', scale=3, **MESH)


@pytest.fixture(scope='module')
def read_back(directory):
  """A function that reads the run on a number of devices."""
  files = trained.find(str(directory))
  run = configuration.load([files.config], [])
  return lambda n: trained.read_back(run, files, jax.devices()[:n])


def test_parameters_are_sharded_as_in_training(read_back):
  read = read_back(8)
  wanted = build.build(read.run, jax.devices()).abstract.params
  for leaf, shape in zip(
    jax.tree.leaves(read.params), jax.tree.leaves(wanted), strict=True
  ):
    assert leaf.sharding == shape.sharding
  experts = read.params['stack']['periods']['block_0']['moe']['w_up_EDF']
  assert experts.addressable_shards[0].data.size == experts.size // 8


def test_parameters_of_another_id_space_are_not_read_back(
  directory, read_back, tmp_path
):
  read = read_back(1)
  shutil.copytree(directory, tmp_path / 'run')
  saver = save.Checkpointer(tmp_path / 'run/checkpoints')
  arrays = {'params': read.params, 'state': read.state}
  hashes = {'vocabulary_sha256': read.vocabulary.sha256, 'ids_sha256': 'f' * 64}
  saver.save(8, arrays, hashes)
  saver.close()
  place = trained.find(str(tmp_path / 'run'))
  with pytest.raises(ValueError, match='must have the id space that step 8'):
    trained.read_back(read.run, place, jax.devices()[:1])


@pytest.mark.slow
def test_eight_devices_score_like_one(read_back, tmp_path):
  path = tmp_path / 'texts.txt'
  lines = ['春眠不覺曉', '花落', '夜來風雨聲，' * 25]
  path.write_text('\n'.join(lines), encoding='utf-8')
  # A batch has three windows. On eight devices it is padded to eight.
  wanted = scoring.ScoringRequest(text_file=str(path), batch_size=3)
  one, eight = (
    scoring.evaluate([''], wanted, lambda _, n=n: read_back(n), None)['nats']
    for n in (1, 8)
  )
  np.testing.assert_allclose(eight, one, rtol=1e-5)


@pytest.mark.slow
def test_eight_devices_write_like_one(read_back):
  written = []
  for n in (1, 8):
    read = read_back(n)
    beginning = writing.read_prompt(read, '春眠', None, 6)
    sampling = writing.Sampling(1.0, 0, 1.0)
    written.append(
      list(writing.write_samples(read, beginning, 3, sampling, seed=0))
    )
  assert written[0] == written[1]
  assert len({sample.text for sample in written[0]}) > 1
