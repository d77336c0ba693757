"""From pictures to a model, its report, drawings and captions."""

import functools
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from launch import bench, describe, draw, images, train
from moe.runs import gallery_file
from moe.runs.picture_model import PictureModel
from tasks.pictures import shapes, stores
from tests.parallel.cluster import started

# Tiny models of pictures of 8 x 8 pixels, with 2 x 2 codes.
TOKENIZER = {
  'PIXELS': 8,
  'LEVELS': (5, 5),
  'WIDTHS': (8, 8),
  'NUM_BLOCKS': (1, 1),
  'BATCH_SIZE': 8,
  'TRAIN_STEPS': 2,
  'WARMUP_STEPS': 1,
  'EVAL_PERIOD': 0,
}
MODEL = {
  'VOCAB_SIZE': 640,
  'NUM_CODES': 25,
  'CODE_LEVELS': (5, 5),
  'EXTRA_TABLES': (('row', 3), ('column', 3)),
  'LONGEST_BLOCK': 4,
  'PATCH_VALUES': 48,
  'TASK': 'shapes_8_both',
  'EVAL_TASKS': ('draw_shapes_8', 'describe_shapes_8'),
  'NUM_LAYERS': 1,
  'D_MODEL': 16,
  'HEAD_DIM': 8,
  'EXPERT_D_FF': 8,
  'SHARED_D_FF': 8,
  'SEQUENCE_LENGTH': 64,
  'BATCH_SIZE': 8,
  'GROUP_SIZE': 64,
  'TRAIN_STEPS': 2,
  'WARMUP_STEPS': 1,
  'EVAL_PERIOD': 1,
}


def flags(numbers):
  return [f'--gin.{name}={value!r}' for name, value in numbers.items()]


def cache_flag(root):
  return f'--gin.CACHE_DIR={str(root / "cache")!r}'


def run_flags(root, name):
  """The flags of a run that reads patches, in the directory `name`."""
  codes = root / 'codes'
  model = {
    **MODEL,
    'TASK_MODULES': (f'{codes}/picture_tasks.py',),
    'IMAGE_TOKENIZER': f'{codes}/image_tokenizer.bin',
  }
  transforms = (
    "--gin.TRANSFORMS=(('draw_shapes_8', @transforms.DropCondition()),"
    "('describe_shapes_8', @transforms.ReadPatches()))"
  )
  return [
    '--gin_file=runs/pictures_cpu.gin',
    '--gin_file=runs/patches.gin',
    f'--workdir={root / name}',
    cache_flag(root),
    transforms,
    *flags(model),
  ]


@pytest.fixture(scope='module')
def place(tmp_path_factory, request):
  """A folder with a tokenizer, codes and a run that reads patches."""
  root = tmp_path_factory.mktemp('pictures')
  patch = pytest.MonkeyPatch()
  few = functools.partial(shapes.Shapes, num_pictures=80)
  patch.setitem(stores.SOURCES, 'shapes', few)
  request.addfinalizer(patch.undo)
  cache, codes = cache_flag(root), root / 'codes'
  tokenizer = {**TOKENIZER, 'PICTURES': ('shapes',)}
  tokenizer_run = f'{root}/tokenizer'
  assert not train.main([
    '--gin_file=runs/image_tokenizer_pictures.gin',
    f'--workdir={tokenizer_run}',
    cache,
    *flags(tokenizer),
  ])  # fmt: skip
  assert not images.main(
    ['encode', f'--checkpoint={tokenizer_run}', f'--output={codes}']
    + ['--patches']
  )
  assert not train.main(run_flags(root, 'run'))
  return root


@pytest.mark.slow
def test_a_run_shows_what_it_draws_and_describes(place):
  (found,) = gallery_file.read(place / 'run').values()
  assert list(found.drawn) == [1, 2]
  assert found.drawn[1].shape == (len(found.sentences), 8, 8, 3)
  assert len(found.written) == len(found.originals) == len(found.made)
  page = (place / 'run' / 'report.html').read_text(encoding='utf-8')
  title = 'shapes_8: held-out pictures and what the model says of them'
  assert f'<h2>{title}</h2>' in page


@pytest.mark.nightly
def test_two_processes_make_the_gallery_of_one(place):
  arguments = ['-m', 'launch.train', *run_flags(place, 'two')]
  processes = started(arguments, 2, 4)
  errors = [process.communicate(timeout=300)[1] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], errors
  (one,), (two,) = (
    gallery_file.read(place / name).values() for name in ('run', 'two')
  )
  assert two.written == one.written
  np.testing.assert_array_equal(two.made, one.made)
  for step in (1, 2):
    np.testing.assert_array_equal(two.drawn[step], one.drawn[step])


@pytest.mark.slow
def test_a_trained_model_draws_a_sentence_and_describes_it(place, capsys):
  checkpoint, sheet = f'--checkpoint={place}/run', f'{place}/red.png'
  code = draw.main(
    [checkpoint, '--prompt=左上角有一個大紅色圓形', '--num=2', f'--out={sheet}']
    + ['--rerank=2']
  )
  assert code == 0
  with Image.open(sheet) as image:
    facts = json.loads(image.text['wudao'])
  assert facts['prompt'] == '左上角有一個大紅色圓形'
  assert np.isfinite(facts['caption_losses']).all()
  assert describe.main([checkpoint, sheet, '--samples=2']) == 0
  assert describe.main([checkpoint, sheet, '--labels=圓形,方形']) == 0
  assert 'red.png' in capsys.readouterr().out


@pytest.mark.slow
def test_the_upper_half_of_a_picture_stays(place, monkeypatch):
  whole, half = f'{place}/whole.png', np.zeros((8, 8, 3), np.uint8)
  half[:, 3:] = 200
  Image.fromarray(half).save(f'{place}/half.png')
  draw_codes, noted = PictureModel.draw, []

  def noting(model, sentences, options, given):
    drawn = draw_codes(model, sentences, options, given)
    noted.extend((one.codes[:2], model.encode([half])[0, :2]) for one in drawn)
    return drawn

  monkeypatch.setattr(PictureModel, 'draw', noting)
  code = draw.main(
    [f'--checkpoint={place}/run', '--prompt=大紅色圓形', f'--out={whole}']
    + ['--num=2', f'--upper_half={place}/half.png']
  )
  assert code == 0 and len(noted) == 2
  for drawn, given in noted:
    np.testing.assert_array_equal(drawn, given)


@pytest.mark.slow
def test_a_damaged_picture_is_not_described(place, capsys):
  path = place / 'damaged.png'
  path.write_bytes(b'damaged')
  assert describe.main([f'--checkpoint={place}/run', str(path)]) == 2
  assert 'damaged.png must be a sound file' in capsys.readouterr().err


@pytest.mark.nightly
def test_a_tokenizer_is_reported(place, capsys):
  code = images.main(
    ['tokenizer-report', f'--checkpoint={place}/tokenizer']
    + ['--judge_epochs=1', f'--cache_dir={place}/cache']
  )
  assert code == 0
  printed = capsys.readouterr().out
  for what in ('PSNR', 'codes that survive', 'real pictures judged, all'):
    assert f'shapes: {what}' in printed
  page = printed.rpartition('page: ')[2].strip()
  assert 'Image tokenizer tokenizer' in pathlib.Path(page).read_text('utf-8')


@pytest.mark.slow
def test_drawing_with_guidance_is_timed_against_drawing_without(place, capsys):
  argv = ['draw', f'--checkpoint={place}/run', '--prompt=大紅色圓形']
  assert bench.main([*argv, '--num=3', '--rounds=2', '--json']) == 0
  report = json.loads(capsys.readouterr().out)
  first, last = report['runs']
  assert first['name'] == 'without guidance'
  assert last['name'] == 'with guidance 2'
  assert last['ratio'] > 0 and report['pictures at a time'] == 3
  assert bench.main([*argv, '--guidance=1']) == 2
  assert '--guidance must not be 1' in capsys.readouterr().err


def drawn(place):
  """The exit code of a command that draws a picture."""
  return draw.main(
    [f'--checkpoint={place}/run', '--prompt=圓形', f'--out={place}/a.png']
  )


@pytest.mark.slow
def test_a_tokenizer_that_is_missing_is_named(place, capsys):
  path = place / 'run' / 'image_tokenizer.bin'
  hidden = path.rename(f'{path}.away')
  code = drawn(place)
  hidden.rename(path)
  assert code == 2
  assert 'image_tokenizer.bin must lie beside' in capsys.readouterr().err


@pytest.mark.slow
def test_another_tokenizer_is_refused(place, capsys):
  path = place / 'run' / 'image_tokenizer.bin'
  kept = path.read_bytes()
  path.write_bytes(kept + b'0')
  code = drawn(place)
  path.write_bytes(kept)
  assert code == 2
  assert 'must be the one that step 2 was trained' in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_is_scored_and_runs_are_joined(place, capsys):
  for seed in (0, 1):
    code = images.main(
      ['score', f'--checkpoint={place}/run', f'--output={place}/s{seed}']
      + ['--num=4', '--limit=16', '--guidance=1', '--judge_epochs=1']
      + [f'--seed={seed}', f'--cache_dir={place}/cache']
    )
    assert code == 0
  runs = [f'{place}/s0', f'{place}/s1']
  assert images.main(['join', *runs]) == 2
  assert 'scores of the same one' in capsys.readouterr().err
  path = place / 's1/pictures_report.json'
  text = path.read_text()
  path.write_text(text.replace(json.loads(text)['facts']['model'], 'other'))
  assert images.main(['join', *runs]) == 0
  printed = capsys.readouterr().out
  for what in ('drawn pictures judged, all', 'what the sentence saves'):
    assert f'shapes: {what}' in printed
