import random

import pytest

from moe.modalities.text import Vocabulary, train_vocabulary

LINES = [
  '白日依山盡，黃河入海流。',
  '欲窮千里目，更上一層樓。',
  '床前明月光，疑是地上霜。\n舉頭望明月，低頭思故鄉。',
  'The quick brown fox jumps over the lazy dog, 1234567890.',
] * 20

HARD = [
  '',
  ' ',
  '   leading, trailing and   several spaces   ',
  '\n',
  'a\n\nb\n',
  'tab\tand\r\nreturn',
  '\u2581',
  'a\u2581b \u2581 c',
  '\u2585',
  '\0',
  'a\0b',
  '，。？！：；「」『』（）、…——《》',
  'ＡＢＣ１２３\u3000全形',
  '𠮷野家 𪚥 𩸽',
  '👩‍👩‍👧‍👦🏳️‍🌈👍🏽',
  'e\u0301 \u00e9 ﬁ ① Ⅳ ㎏',
  '</s><pad><unk><0xE4>\ufeff\u2028\u0085',
  '\U0010ffff\ufffd\ufffe',
]


@pytest.fixture(scope='module', params=['bpe', 'char', 'unigram'])
def trained(request, tmp_path_factory):
  path = tmp_path_factory.mktemp('v') / 'vocabulary.model'
  return train_vocabulary(iter(LINES), 330, path, request.param)


@pytest.mark.parametrize('text', HARD)
def test_text_comes_back_as_it_was(trained, text):
  assert trained.decode(trained.encode(text)) == text


def test_random_unicode_comes_back_as_it_was(trained):
  rng = random.Random(0)
  common = ''.join(LINES[:4]) + '\u2581 \n\0'
  for _ in range(300):
    text = ''.join(
      rng.choice(common)
      if rng.random() < 0.7
      else chr(
        rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])
      )
      for _ in range(rng.randrange(20))
    )
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert all(2 < id < trained.size for id in ids)


def test_marks_have_the_first_ids(trained):
  assert (trained.pad, trained.eos, trained.unk) == (0, 1, 2)
  assert trained.decode([0, 1]) == ''


def test_newline_is_a_piece_of_its_own(trained):
  assert len(trained.encode('\n')) == 1
  newline = trained.encode('\n')[0]
  assert not trained.is_byte(newline)
  assert trained.encode('山\n水').count(newline) == 1


def test_rare_characters_are_spelt_in_bytes(trained):
  ids = trained.encode('𠮷')
  assert len(ids) == 4 and all(trained.is_byte(id) for id in ids)
  assert trained.piece(ids[0]) == '<0xF0>'


def test_half_a_character_becomes_the_replacement_character(trained):
  assert trained.decode(trained.encode('𠮷')[:2]) == '\ufffd'


def test_spaces_are_kept_although_no_line_has_one(tmp_path):
  trained = train_vocabulary(['春眠不覺曉'], 300, tmp_path / 'v')
  assert trained.decode(trained.encode(' 春  眠')) == ' 春  眠'


def test_ids_out_of_range_are_refused(trained):
  for ids in ([trained.size], [-1]):
    with pytest.raises(ValueError, match='Token ids must be from 0'):
      trained.decode(ids)


def test_a_lone_surrogate_is_refused(trained):
  with pytest.raises(ValueError, match='lone surrogate .* at character 2'):
    trained.encode('ab\ud800')


def test_the_same_lines_give_the_same_file(tmp_path):
  for name in 'ab':
    train_vocabulary(LINES, 320, tmp_path / name)
  assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_too_large_a_size_gives_what_the_corpus_supports(tmp_path, caplog):
  trained = train_vocabulary(LINES, 5000, tmp_path / 'v', 'char')
  # The vocabulary has 3 marks, the line break, 256 bytes, and each different
  # character. The space is one of these characters.
  different = len(set(''.join(LINES)) - {'\n'})
  assert trained.size == 260 + different
  assert f'supports {trained.size} pieces, not the 5000' in caplog.text


def test_a_small_size_keeps_the_most_frequent_characters(tmp_path):
  lines = ['山' * 50 + '水' * 30 + '雲' * 2] * 3
  trained = train_vocabulary(lines, 263, tmp_path / 'v')
  assert trained.size == 263
  assert len(trained.encode('山')) == len(trained.encode('水')) == 1
  assert len(trained.encode('雲')) == 3


def test_the_text_of_long_documents_is_used(tmp_path):
  trained = train_vocabulary(['天地玄黃' * 30_000], 300, tmp_path / 'v')
  assert not trained.is_byte(trained.encode('玄')[0])


@pytest.mark.parametrize(
  ('lines', 'size', 'model_type', 'message'),
  [
    (LINES, 100, 'bpe', 'more than 261 pieces'),
    ([], 300, 'bpe', 'needs text'),
    (['\n'], 300, 'bpe', 'needs text'),
    (LINES, 300, 'word', 'model_type'),
  ],
)
def test_what_cannot_be_trained_is_refused(
  tmp_path, lines, size, model_type, message
):
  with pytest.raises(ValueError, match=message):
    train_vocabulary(lines, size, tmp_path / 'v', model_type)
  assert not (tmp_path / 'v').exists()


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='must be written whole'):
    train_vocabulary(LINES, 300, tmp_path / 'file' / 'v')


def test_a_missing_file_is_refused(tmp_path):
  with pytest.raises(ValueError, match='got nothing there'):
    Vocabulary(tmp_path / 'none.model')


def test_a_file_that_is_not_a_model_is_refused(tmp_path):
  (tmp_path / 'v').write_bytes(b'no model')
  with pytest.raises(ValueError, match='must be a SentencePiece model'):
    Vocabulary(tmp_path / 'v')


def test_a_model_that_changes_text_is_refused(tmp_path):
  import sentencepiece

  with open(tmp_path / 'v', 'wb') as f:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(LINES),
      model_writer=f,
      vocab_size=400,
      model_type='bpe',
      byte_fallback=True,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      hard_vocab_limit=False,
      minloglevel=2,
    )
  with pytest.raises(ValueError, match='must give text back intact'):
    Vocabulary(tmp_path / 'v')
