"""An image tokenizer is trained, frozen, scored, and encodes pictures."""

import functools
import json
import shlex
import shutil

import jax
import numpy as np
import optax
import pytest

from launch.configs import configuration
from moe.checkpoint import listing
from moe.data.store import Store
from moe.evaluate import reconstruction
from moe.modalities import image
from moe.modalities.ids import IdSpace
from moe.modalities.image import Autoencoder
from moe.objectives.image_codes import image_codes
from moe.optim import optimizers
from moe.parallel.mesh import MeshShape
from moe.report import tokenizer_page
from moe.runs import (
  image_tokenizer,
  picture_codes,
  preflight,
  rewind,
  tokenizer_report,
)
from moe.runs.tokenizer_run import Pictures, TokenizerRun
from moe.train import trainer
from tasks import registry
from tasks.pictures import code_tasks, shapes, stores

pytestmark = pytest.mark.slow

SETTINGS = trainer.Settings(4, eval_period=2, save_period=2)
RUN = TokenizerRun(
  Autoencoder((5, 5), widths=(8,), num_blocks=(1,)),
  MeshShape(data=-1),
  image_codes,
  optimizers.adamw,
  optax.constant_schedule(0.01),
  Pictures(['shapes'], 8, 8),
  SETTINGS,
)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """(folder of the trained `run`, name -> split -> store of its pictures)."""
  root = tmp_path_factory.mktemp('tokenizer')
  few = functools.partial(shapes.Shapes, num_pictures=40)
  prepare = lambda names, size, _: stores.prepare(names, size, root / 'cache')
  (root / 'run').mkdir()
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(stores.SOURCES, 'shapes', few)
    code = image_tokenizer.train(
      RUN, str(root / 'run'), {'config.gin': ''}, prepare
    )
    assert code == 0
    pictures = prepare(['shapes'], 8, '')
  return root, pictures


def test_a_run_goes_back_and_leaves_out_a_batch(place, tmp_path):
  root, pictures = place
  shutil.copytree(root / 'run', tmp_path / 'run')
  reader = lambda: image_tokenizer.open_pictures(
    RUN, RUN.program(), lambda *_: pictures
  )[0]
  rewind.rewind(str(tmp_path / 'run'), 2, (3, 4))
  read = []

  class Noted(type(reader())):
    def batch(self, step):
      read.append(self.skips.number(step))
      return super().batch(step)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(image_tokenizer, 'PictureReader', Noted)
    image_tokenizer.train(
      RUN, str(tmp_path / 'run'), {'config.gin': ''}, lambda *_: pictures
    )
  # Batches count from 0. Before the rewind, step 3 read batch 2. Now batch 2 is
  # left out, so steps 3 and 4 read the batches 3 and 4.
  assert read[:2] == [3, 4]
  meta = listing.read_meta(tmp_path / 'run/checkpoints/4')
  assert meta['skipped_batches'] == [[2, 3]]
  # Both attempts are recorded. The time of the repeated steps counts as lost.
  booked = json.loads((tmp_path / 'run/run.json').read_text())['goodput']
  assert len(booked['attempts']) == 2 and booked['parts']['lost'] > 0


def test_a_frozen_tokenizer_is_known_by_its_hash(place):
  root, _ = place
  frozen = image_tokenizer.load(root / 'run')
  again = image_tokenizer.freeze(RUN, str(root / 'run'))
  assert frozen.sha256 == again.sha256
  assert frozen.num_codes == 25 and frozen.grid == (4, 4)
  pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
  codes = frozen.encode(pictures)
  assert codes.shape == (3, 16) and np.array_equal(
    codes, again.encode(pictures)
  )
  assert frozen.decode(codes).shape == pictures.shape
  with pytest.raises(ValueError, match='16 codes from 0 to 24'):
    frozen.decode(codes + 25)


def test_a_missing_or_damaged_tokenizer_is_refused(place, tmp_path):
  root, _ = place
  with pytest.raises(ValueError, match='nothing there: train one'):
    image_tokenizer.load(tmp_path)
  path = image_tokenizer.path_of(root / 'run')
  (tmp_path / path.name).write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match='must be sound'):
    image_tokenizer.load(tmp_path)


def test_the_report_shows_held_out_pictures(place, tmp_path):
  root, pictures = place
  frozen = image_tokenizer.load(root / 'run')
  found, scores = tokenizer_report.report(frozen, pictures, 'the command')
  assert list(found) == ['shapes', 'shapes_unseen', 'shapes_unseen_pairs']
  page = tokenizer_page.write(tmp_path, 'Title', frozen.facts, found, scores)
  assert scores[0].name == 'shapes: PSNR' and scores[0].n == 2
  assert frozen.sha256 in page.read_text() and 'the command' in page.read_text()
  assert (tmp_path / 'reconstructions_shapes.png').stat().st_size


def test_a_judge_tells_what_reconstructions_keep(place):
  root, pictures = place
  frozen = image_tokenizer.load(root / 'run')
  _, scores = tokenizer_report.report(frozen, pictures, '', judge_epochs=1)
  names = {score.name for score in scores}
  for what in ('real', 'reconstructed'):
    assert f'shapes: {what} pictures judged, all' in names
    assert any(
      name.startswith(f'shapes: {what} pictures judged, colour_0 of kind')
      for name in names
    )


def test_the_flags_of_a_run_name_all_that_was_encoded(place):
  root, _ = place
  frozen = image_tokenizer.load(root / 'run')
  flags_of = functools.partial(picture_codes.run_flags, frozen)
  counts = {'b_8/train': 3, 'b_8/validation': 1, 'a_8/train': 2}
  text = flags_of('my codes', counts, has_patches=True)
  flags = shlex.split(text.replace('\\\n', ' '))
  assert "--gin.TASK_MODULES=('my codes/picture_tasks.py',)" in flags
  assert "--gin.TASK='pictures'" in flags
  transforms = next(flag for flag in flags if 'TRANSFORMS' in flag)
  assert "('draw_a_8', @transforms.DropCondition())" in transforms
  assert "('describe_b_8', @transforms.ReadPatches())" in transforms
  for size in (
    'CODE_LEVELS=(5, 5)',
    'NUM_CODES=25',
    "EXTRA_TABLES=(('row', 5), ('column', 5))",
    'LONGEST_BLOCK=16',
    'SEQUENCE_LENGTH=256',
    'PATCH_VALUES=12',
  ):
    assert f'--gin.{size}' in flags
  one = flags_of('c', {'b_8/train': 3}, has_patches=False)
  assert 'b_8_both' in one
  assert 'ReadPatches' not in one and 'PATCH_VALUES' not in one


def test_a_model_with_other_sizes_than_its_tokenizer_is_refused(place):
  root, _ = place
  frozen = image_tokenizer.load(root / 'run')
  sizes = {
    'NUM_CODES': 25,
    'CODE_LEVELS': (5, 5),
    'EXTRA_TABLES': (('row', 5), ('column', 5)),
    'LONGEST_BLOCK': 16,
  }

  def check(**others):
    bound = [f'{k}={v!r}' for k, v in {**sizes, **others}.items()]
    run = configuration.load(['runs/pictures_cpu.gin'], bound)
    image_tokenizer.check_model(frozen, run.model)

  check()
  for others, message in (
    ({'CODE_LEVELS': (25,)}, r'CODE_LEVELS=\(25,\) must be .* 4 x 4 codes'),
    ({'EXTRA_TABLES': (('row', 4),)}, 'row=4 must be at least 5'),
    ({'LONGEST_BLOCK': 15}, 'LONGEST_BLOCK=15 must be at least 16'),
  ):
    with pytest.raises(ValueError, match=message):
      check(**others)


def test_a_perfect_tokenizer_has_perfect_scores():
  pictures = np.arange(2 * 16 * 16 * 3, dtype=np.uint8).reshape(2, 16, 16, 3)
  codes = np.array([[0, 1], [2, 3]])
  found = reconstruction.Reconstruction(pictures, pictures, codes, codes)
  scores = reconstruction.scores(found, 8, 'p', '')
  value = {score.name: score.value for score in scores}
  assert value['p: PSNR'] == pytest.approx(100)
  assert value['p: SSIM'] == pytest.approx(1)
  assert value['p: codes used'] == 0.5
  assert value['p: perplexity of codes'] == pytest.approx(4)
  assert value['p: codes that survive'] == 1


@pytest.fixture
def declared(monkeypatch):
  monkeypatch.setattr(registry, 'TASKS', {})
  monkeypatch.setattr(registry, 'MIXTURES', {})


def test_codes_become_tasks_in_both_orders(place, tmp_path, declared):
  root, pictures = place
  frozen = image_tokenizer.load(root / 'run')
  path = image_tokenizer.path_of(root / 'run')
  counts = picture_codes.encode(frozen, path, pictures, tmp_path)
  assert counts['shapes_8/train'] == 40
  assert code_tasks.add(tmp_path) == ['shapes_8_both']
  draw, describe = registry.TASKS.values()
  assert draw.kinds['targets'].tokenizer == frozen.sha256
  assert describe.kinds['inputs'].is_block
  assert not draw.kinds['targets'].is_block
  (drawn, *_), (described, *_) = (
    list(task.documents('unseen')) for task in (draw, describe)
  )
  assert drawn['inputs'] == described['targets'] + '\n'
  assert np.array_equal(drawn['targets'], described['inputs'])
  (wanted,) = Store(pictures['shapes']['unseen']).read([0])
  codes = frozen.encode(wanted['pixels'][None])[0]
  assert np.array_equal(drawn['targets'], codes)


def test_a_description_may_have_the_pixels_of_its_codes(
  place, tmp_path, declared
):
  root, pictures = place
  frozen = image_tokenizer.load(root / 'run')
  path = image_tokenizer.path_of(root / 'run')
  picture_codes.encode(frozen, path, pictures, tmp_path, has_patches=True)
  code_tasks.add(tmp_path)
  (described, *_) = registry.TASKS['describe_shapes_8'].documents('train')
  (wanted,) = Store(pictures['shapes']['train']).read([0])
  np.testing.assert_array_equal(
    described['patches'],
    image.patches_of(wanted['pixels'][None], frozen.grid)[0],
  )


def test_codes_of_another_tokenizer_are_refused(place):
  root, _ = place
  path = str(image_tokenizer.path_of(root / 'run'))
  sha256 = image_tokenizer.load(path).sha256
  space = lambda sha: IdSpace(300, image=25, tokenizers=(('image', sha),))
  preflight.check_tokenizer(space(sha256), path)
  preflight.check_tokenizer(IdSpace(300), '')
  for found, file in ((space('0' * 64), path), (space(sha256), '')):
    with pytest.raises(ValueError, match='the tokenizer that made'):
      preflight.check_tokenizer(found, file)


def test_several_processes_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(ValueError, match='by one process, got 2'):
    image_tokenizer.train(RUN, str(tmp_path), {}, None)
