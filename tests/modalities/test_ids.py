import jax.numpy as jnp
import numpy as np
import pytest

from moe.modalities import ids
from moe.modalities.ids import IdSpace

# The ids are: text 0-299, image 384-393, residues 512-531, structure 640-659.
SPACE = IdSpace(300, image=10, residue=20, structure=20)


def test_text_alone_is_one_range_without_padding():
  space = IdSpace(301)
  assert space.size == 301 and space.is_text and str(space) == '301'
  assert space.unknown(np.array([0, 300, 301, -1])).tolist() == [301, -1]


def test_every_range_begins_at_a_multiple_of_128():
  begins = [int(SPACE.ids(name, [0])[0]) for name in ('image', 'residue')]
  assert begins == [384, 512]
  assert SPACE.size == 768 and not SPACE.is_text
  assert IdSpace(256, command=1).ids('command', [0]) == [256]


def test_the_ids_of_text_are_the_same_in_every_space():
  assert SPACE.ids('text', [ids.PAD, ids.EOS, ids.UNK]).tolist() == [0, 1, 2]


def test_codes_come_back_from_their_ids():
  found = SPACE.ids('residue', np.arange(20))
  assert SPACE.codes('residue', found).tolist() == list(range(20))
  mixed = np.concatenate([[5], found[:2], [7]])
  assert SPACE.codes('text', mixed).tolist() == [5, 7]
  assert SPACE.codes('command', mixed).size == 0


def test_the_padding_between_ranges_belongs_to_no_range():
  assert SPACE.unknown(np.array([299, 300, 383, 384, 394])).tolist() == [
    300, 383, 394,
  ]  # fmt: skip


@pytest.mark.parametrize('array', [np.array, jnp.array])
def test_the_modality_depends_on_the_range(array):
  tokens = array([[0, 299, 384, 393], [512, 531, 640, 659]], dtype='int32')
  modality = SPACE.modality(tokens)
  assert modality.tolist() == [[0, 0, 1, 1], [2, 2, 2, 2]]
  assert modality.dtype == 'int32'


def test_commands_are_text_and_the_first_one_is_the_mask():
  space = IdSpace(300, command=2, residue=20)
  assert space.mask == 384
  assert space.modality(np.array([384, 385, 512], np.int32)).tolist() == [
    0, 0, 2,
  ]  # fmt: skip


def test_a_space_comes_back_from_its_manifest():
  manifest = {'vocab_size': 300, **SPACE.in_manifest()}
  assert ids.of_manifest(manifest) == SPACE
  assert IdSpace(300).in_manifest() == {}
  assert ids.of_manifest({'vocab_size': 300}) == IdSpace(300)


def test_a_manifest_of_another_layout_is_refused():
  manifest = {'vocab_size': 300, **SPACE.in_manifest()}
  manifest['ids'] = manifest['ids'] | {'sha256': 'f' * 64}
  with pytest.raises(ValueError, match='got those of another layout'):
    ids.of_manifest(manifest)


def test_the_hash_tells_layouts_apart():
  spaces = [IdSpace(300), SPACE, IdSpace(300, image=11, residue=20)]
  assert len({space.sha256 for space in spaces}) == 3


@pytest.mark.parametrize(
  ('name', 'codes', 'message'),
  [
    ('image', [10], 'from 0 to 9, got 10 to 10'),
    ('image', [-1], 'from 0 to 9'),
    ('command', [0], "must have a range 'command', got text 0-299, image"),
  ],
)
def test_codes_out_of_range_are_refused(name, codes, message):
  with pytest.raises(ValueError, match=message):
    SPACE.ids(name, codes)


@pytest.mark.parametrize('sizes', [{'text': 2}, {'text': 9, 'image': -1}])
def test_sizes_out_of_range_are_refused(sizes):
  with pytest.raises(ValueError, match='change the sizes'):
    IdSpace(**sizes)


def with_tokenizer(sha256):
  return IdSpace(300, image=10, tokenizers=(('image', sha256),))


def test_the_tokenizer_of_codes_is_part_of_the_hash_and_of_the_manifest():
  plain, known = IdSpace(300, image=10), with_tokenizer('a1')
  assert known.sha256 not in (plain.sha256, with_tokenizer('b2').sha256)
  assert ids.of_manifest(known.in_manifest()) == known
  assert 'tokenizers' not in plain.in_manifest()['ids']


def test_codes_of_two_tokenizers_share_no_space():
  plain, known = IdSpace(300, image=10), with_tokenizer('a1')
  assert ids.shared([IdSpace(300), plain, known]) == known
  with pytest.raises(ValueError, match='one tokenizer, got those of a1 and'):
    ids.shared([known, with_tokenizer('b2')])


def test_every_id_has_the_number_of_its_range():
  # Text has the ids 0-127, commands 128-255, and codes begin at 256. Padding
  # belongs to the range before it.
  space = IdSpace(10, command=1, image=8)
  ids = np.array([0, 9, 127, 128, 200, 256, 383])
  np.testing.assert_array_equal(space.range_of(ids), [0, 0, 0, 1, 1, 2, 2])
  assert space.begin('image') == 256
