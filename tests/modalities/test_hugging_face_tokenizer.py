"""A small tokenizer in this test reads the tokenizer.json that we write.

tests/interop reads it with transformers itself.
"""

import pytest

from moe.modalities import hugging_face_tokenizer
from moe.modalities.text import train_vocabulary

LINES = [
  '春眠不覺曉，處處聞啼鳥。夜來風雨聲，花落知多少。',
  '白日依山盡，黃河入海流。  欲窮千里目，更上一層樓。',
  'the rain in spring, the rain at night',
] * 5
TEXTS = [*LINES[:3], '\u2581 龘\n\n</s><0x41>', 'rain rain  the the', '']


@pytest.fixture(scope='module', params=['bpe', 'char'])
def made(request, tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'vocabulary.model'
  vocabulary = train_vocabulary(LINES, 400, path, model_type=request.param)
  return vocabulary, hugging_face_tokenizer.files(vocabulary, 64)


def encode(tokenizer, text):
  """Byte-pair encoding with bytes for characters without a piece."""
  ids = tokenizer['model']['vocab']
  rank = {tuple(m): i for i, m in enumerate(tokenizer['model']['merges'])}
  pieces = list(text)
  while True:
    pairs = list(zip(pieces, pieces[1:], strict=False))
    best = min(pairs, key=lambda p: rank.get(p, len(rank)), default=None)
    if best not in rank:
      break
    i = pairs.index(best)
    pieces[i : i + 2] = [best[0] + best[1]]
  found = []
  for piece in pieces:
    spelt = [f'<0x{byte:02X}>' for byte in piece.encode()]
    found += [ids[p] for p in ([piece] if piece in ids else spelt)]
  return found


def test_ids_are_those_of_the_vocabulary(made):
  vocabulary, files = made
  for text in TEXTS:
    wanted = vocabulary.encode(text)
    assert encode(files['tokenizer.json'], text) == wanted, text


def test_every_piece_has_its_id(made):
  vocabulary, files = made
  ids = files['tokenizer.json']['model']['vocab']
  assert sorted(ids.values()) == list(range(vocabulary.size))
  assert ids[' '] == vocabulary.encode(' ')[0]
  assert '\u2581' not in ids


def test_a_text_begins_with_token_0_and_marks_have_their_names(made):
  _, files = made
  config, tokenizer = files['tokenizer_config.json'], files['tokenizer.json']
  names = {t['content']: t['id'] for t in tokenizer['added_tokens']}
  marks = [config[f'{m}_token'] for m in ('bos', 'eos', 'unk', 'pad')]
  assert [names[mark] for mark in marks] == [0, 1, 2, 1]
  first = tokenizer['post_processor']['single'][0]['SpecialToken']['id']
  assert names[first] == 0
