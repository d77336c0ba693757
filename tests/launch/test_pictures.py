"""From a folder of pictures to a model, its report, drawings and captions."""

import json

import numpy as np
import pytest
from PIL import Image

from launch import describe, draw, images, train
from moe.runs import gallery_file

COLOURS = {'紅': (220, 40, 40), '綠': (40, 160, 70), '藍': (40, 90, 220)}
# Tiny models of pictures of 8 x 8 pixels, with 2 x 2 codes.
TOKENIZER = {
  'PIXELS': 8,
  'LEVELS': (5, 5),
  'WIDTHS': (8, 8),
  'NUM_BLOCKS': (1, 1),
  'BATCH_SIZE': 8,
  'TRAIN_STEPS': 2,
  'EVAL_PERIOD': 0,
}
MODEL = {
  'VOCAB_SIZE': 768,
  'NUM_CODES': 25,
  'CODE_LEVELS': (5, 5),
  'EXTRA_TABLES': (('row', 3), ('column', 3)),
  'LONGEST_BLOCK': 4,
  'PATCH_VALUES': 48,
  'TASK': 'mine_8_both',
  'EVAL_TASKS': ('draw_mine_8', 'describe_mine_8'),
  'NUM_LAYERS': 1,
  'D_MODEL': 16,
  'HEAD_DIM': 8,
  'EXPERT_D_FF': 8,
  'SHARED_D_FF': 8,
  'SEQUENCE_LENGTH': 64,
  'BATCH_SIZE': 8,
  'GROUP_SIZE': 64,
  'TRAIN_STEPS': 2,
  'EVAL_PERIOD': 1,
}


def flags(numbers):
  return [f'--gin.{name}={value!r}' for name, value in numbers.items()]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with pictures, a tokenizer, codes and a run."""
  root = tmp_path_factory.mktemp('pictures')
  (root / 'mine').mkdir()
  with open(root / 'mine' / 'captions.jsonl', 'w', encoding='utf-8') as file:
    for number in range(60):
      name = list(COLOURS)[number % 3]
      picture = np.full((8, 8, 3), COLOURS[name], np.uint8)
      picture[: number % 8] = 255
      Image.fromarray(picture).save(root / 'mine' / f'{number}.png')
      record = {'file': f'{number}.png', 'caption': f'一張{name}色的圖片'}
      file.write(json.dumps(record, ensure_ascii=False) + '\n')
  cache = f'--gin.CACHE_DIR={str(root / "cache")!r}'
  codes = root / 'codes'
  tokenizer = {**TOKENIZER, 'PICTURES': (f'{root}/mine',)}
  model = {
    **MODEL,
    'TASK_MODULES': (f'{codes}/picture_tasks.py',),
    'IMAGE_TOKENIZER': f'{codes}/image_tokenizer.bin',
  }
  transforms = (
    "--gin.TRANSFORMS=(('draw_mine_8', @transforms.DropCondition()),"
    "('describe_mine_8', @transforms.ReadPatches()))"
  )
  tokenizer_run, run = f'{root}/tokenizer', f'{root}/run'
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
  assert not train.main([
    '--gin_file=runs/pictures_cpu.gin',
    '--gin_file=runs/patches.gin',
    f'--workdir={run}',
    cache,
    transforms,
    *flags(model),
  ])  # fmt: skip
  return root


@pytest.mark.slow
def test_a_run_shows_what_it_draws_and_describes(place):
  (found,) = gallery_file.read(place / 'run').values()
  assert list(found.drawn) == [1, 2]
  assert found.drawn[1].shape == (len(found.sentences), 8, 8, 3)
  assert len(found.written) == len(found.originals) == len(found.made)
  page = (place / 'run' / 'report.html').read_text(encoding='utf-8')
  assert '<h2>mine_8: held-out pictures, read as codes</h2>' in page


@pytest.mark.slow
def test_a_trained_model_draws_a_sentence_and_describes_it(place, capsys):
  checkpoint, sheet = f'--checkpoint={place}/run', f'{place}/red.png'
  code = draw.main(
    [checkpoint, '--prompt=一張紅色的圖片', '--num=2', f'--out={sheet}']
    + ['--rerank=2']
  )
  assert code == 0
  with Image.open(sheet) as image:
    facts = json.loads(image.text['wudao'])
  assert facts['prompt'] == '一張紅色的圖片'
  assert np.isfinite(facts['caption_losses']).all()
  assert describe.main([checkpoint, sheet, '--samples=2']) == 0
  assert describe.main([checkpoint, sheet, '--labels=紅,綠']) == 0
  assert 'red.png' in capsys.readouterr().out


@pytest.mark.slow
def test_a_tokenizer_that_is_missing_is_named(place, capsys):
  path = place / 'run' / 'image_tokenizer.bin'
  hidden = path.rename(f'{path}.away')
  code = draw.main(
    [f'--checkpoint={place}/run', '--prompt=紅', f'--out={place}/a.png']
  )
  hidden.rename(path)
  assert code == 2
  assert 'image_tokenizer.bin must lie beside' in capsys.readouterr().err
