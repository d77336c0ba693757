import json
import pathlib
import re
import sys

import numpy as np
import pytest
from PIL import Image

from moe.data.store import Store
from tasks import splits
from tasks.pictures import decoding, sentences, sources, stores


@pytest.fixture
def data(tmp_path, monkeypatch):
  """The image folder of a data directory, with two pictures of clothes."""
  images = tmp_path / 'data' / 'images'
  images.mkdir(parents=True)
  monkeypatch.setenv('WUDAO_DATA', str(tmp_path / 'data'))
  np.savez(
    images / 'fashion_mnist_valid.npz',
    images=np.full((2, 28, 28), 9, np.uint8),
    labels=np.array([1, 0], np.uint8),
  )
  return images


def write_lines(path, values):
  path.write_text(''.join(json.dumps(value) + '\n' for value in values))


@pytest.fixture
def folder(tmp_path):
  """A user's folder with nine good pictures and a damaged one.

  Their names put all of them into the training split.
  """
  root = tmp_path / 'mine'
  root.mkdir()
  names = [f'{n}.png' for n in range(30)]
  names = [name for name in names if splits.by_hash(name) == 'train'][:10]
  for n, name in enumerate(names):
    Image.new('RGB', (9, 5), (n, 0, 0)).save(root / name)
  (root / names[3]).write_bytes(b'damaged')
  captions = [{'file': name, 'caption': f'第{name}張'} for name in names]
  write_lines(root / sources.CAPTIONS, captions)
  return root


def test_clothes_have_their_label_and_name(data):
  first, second = sources.FashionMnist(32).records('validation')
  assert first['caption'] == '一件長褲的圖片' and first['facts']['label'] == 1
  assert '上衣' in second['caption']
  assert first['picture'].shape == (32, 32, 3)


def test_a_missing_data_file_is_named(data, monkeypatch):
  with pytest.raises(ValueError, match='emoji_noto_train.npz must be there'):
    list(sources.Emoji().records('train'))
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(ValueError, match='fashion_mnist_train.npz must be there'):
    list(sources.FashionMnist().records('train'))


@pytest.mark.slow
def test_clothes_without_a_file_come_from_tensorflow_datasets(
  data, tmp_path, monkeypatch
):
  pytest.importorskip('importlib_resources')
  tfds = pytest.importorskip('tensorflow_datasets')
  # It has 20 pictures in each split, in the form of Fashion-MNIST.
  builder = tfds.testing.DummyMnist(data_dir=tmp_path)
  monkeypatch.setattr(tfds, 'builder', {'fashion_mnist': builder}.__getitem__)
  records = list(sources.FashionMnist(32).records('train'))
  assert len(records) == 20 and records[0]['picture'].shape == (32, 32, 3)
  names = {record['facts']['name'] for record in records}
  assert names <= {*sentences.CLOTHES_NAMES}


def test_a_character_varies_in_place_size_slant_and_width():
  medians = [[[100, 400], [900, 400]], [[500, 800], [500, 0]]]
  draw = lambda seed: sources.draw_strokes(
    medians, 32, np.random.default_rng(seed)
  )
  assert np.array_equal(draw(0), draw(0))
  assert not np.array_equal(draw(0), draw(1))
  assert 0.05 < (draw(0) < 128).mean() < 0.4


def test_the_judge_of_characters_learns_from_other_jitter(data, monkeypatch):
  strokes = [[[100, 400], [900, 400]], [[500, 800], [500, 0]]]
  lines = [
    {'char': char, 'freq': freq, 'medians': strokes}
    for char, freq in (('一', 9), ('二', 8), ('永', 1))
  ]
  monkeypatch.setattr(sources, '_lines', lambda name: iter(lines))
  source = sources.Hanzi(num_characters=2, size=32)
  made = {split: list(source.records(split)) for split in source.splits}
  names = [record['facts']['name'] for record in made['validation']]
  # 100 of the 400 sentences choose the guidance, and 200 are drawn.
  assert names == ['永', '一', '永', '一']
  pixels = {
    split: {record['picture'].tobytes() for record in records}
    for split, records in made.items()
  }
  assert not pixels['judge'] & pixels['train']
  assert not pixels['validation'] & pixels['train']


def test_a_damaged_picture_is_quarantined_with_its_name(folder):
  source = sources.Folder(str(folder), 16)
  found = list(source.records('train'))
  assert len(found) == 9
  assert found[0]['picture'].shape == (16, 16, 3)
  (entry,) = source.quarantine
  assert entry['file'] not in [record['facts']['file'] for record in found]
  assert 'must be a sound file' in entry['error']


def test_a_file_outside_of_the_folder_is_not_read(folder):
  Image.new('RGB', (2, 2)).save(folder.parent / 'secret.png')
  name = '../secret.png'
  write_lines(folder / sources.CAPTIONS, [{'file': name, 'caption': '密'}])
  source = sources.Folder(str(folder), 16)
  assert not list(source.records(splits.by_hash(name)))
  assert 'must lie in the folder' in source.quarantine[0]['error']


def test_a_file_that_is_too_large_is_not_read_whole(folder, monkeypatch):
  monkeypatch.setattr(decoding, '_MAX_BYTES', 50)
  monkeypatch.setattr(pathlib.Path, 'read_bytes', None)
  source = sources.Folder(str(folder), 16)
  assert not list(source.records('train'))
  errors = [entry['error'] for entry in source.quarantine]
  assert any('must have at most 50 bytes, got 51' in one for one in errors)


def test_a_folder_of_any_name_gives_names_of_tasks(folder, tmp_path):
  place = folder.rename(tmp_path / 'my-own 圖.1')
  dirs = stores.prepare([str(place)], 16, tmp_path / 'cache')[str(place)]
  name = pathlib.Path(dirs['train']).parent.name
  assert re.fullmatch(r'my_own_圖\.1_[0-9a-f]{8}_16', name)


def test_a_folder_becomes_a_store_that_is_made_again_when_it_changes(
  folder, tmp_path
):
  name = f'{folder}/'
  dirs = stores.prepare([name], 16, tmp_path / 'cache')[name]
  store = Store(dirs['train'])
  (record,) = store.read([0])
  assert record['pixels'].shape == (16, 16, 3)
  assert json.loads(record['facts'].tobytes())['caption'].startswith('第')
  before = store.manifest['content_sha256']
  again = stores.prepare([name], 16, tmp_path / 'cache')[name]
  assert Store(again['train']).manifest['content_sha256'] == before
  for path in folder.glob('*.png'):
    Image.new('RGB', (9, 5), (0, 0, 200)).save(path)
  again = stores.prepare([name], 16, tmp_path / 'cache')[name]
  assert Store(again['train']).manifest['content_sha256'] != before


def test_a_removed_held_out_picture_leaves_no_store(folder, tmp_path):
  captions = folder / sources.CAPTIONS
  kept = captions.read_text(encoding='utf-8')
  names = (f'{number}.png' for number in range(1000))
  name = next(n for n in names if splits.by_hash(n) == 'validation')
  Image.new('RGB', (9, 5)).save(folder / name)
  line = json.dumps({'file': name, 'caption': '紅'})
  splits_of = lambda: set(
    stores.prepare([str(folder)], 16, tmp_path / 'cache')[str(folder)]
  )
  captions.write_text(f'{kept.rstrip()}\n{line}\n', encoding='utf-8')
  assert splits_of() == {'train', 'validation'}
  captions.write_text(kept, encoding='utf-8')
  assert splits_of() == {'train'}


def test_an_unknown_name_is_refused(tmp_path):
  with pytest.raises(ValueError, match='fashion_mnist, shapes'):
    stores.prepare(['fashion'], 32, tmp_path)


def test_a_folder_that_a_run_knows_by_a_hash_must_be_named():
  with pytest.raises(ValueError, match='add the flag, such as --pictures ./my'):
    stores.source_of('my_pictures_1a2b3c4d', 32)
