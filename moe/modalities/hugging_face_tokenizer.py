"""Exports a vocabulary to the files from which transformers makes a tokenizer.

SentencePiece writes a space as a mark. In `tokenizer.json` the pieces have
spaces instead, so the tokenizer need not replace spaces by marks. A text that
contains the mark itself then gets the same ids as in our vocabulary. A text may
contain the name of a special token or of a byte, such as </s>. BPE and char
models read such a name as plain text, like our vocabulary. Unigram models read
it as the token.
"""

from typing import Any

from sentencepiece import sentencepiece_model_pb2

from moe.modalities.text import SPACE_MARK, Vocabulary

# Kinds of models and kinds of pieces in sentencepiece_model.proto.
_UNIGRAM, _BPE, _CHAR = 1, 2, 4
_NORMAL, _USER = 1, 4


def files(vocabulary: Vocabulary, length: int) -> dict[str, Any]:
  """The contents of the tokenizer's JSON files, by file name.

  The tokenizer puts the padding id before every text, since our models read it
  before the first token. It pads batches with end marks.

  Args:
    vocabulary: vocabulary of the run.
    length: number of tokens of the longest text that the model reads.

  Raises:
    ValueError: if the SentencePiece model is none of unigram, BPE and char.
  """
  with open(vocabulary.path, 'rb') as f:
    model = sentencepiece_model_pb2.ModelProto.FromString(f.read())
  begin, end, unknown = (
    vocabulary.piece(i)
    for i in (vocabulary.pad, vocabulary.eos, vocabulary.unk)
  )
  tokenizer = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [
      _special(i, name) for i, name in enumerate((begin, end, unknown))
    ],
    'normalizer': None,
    'pre_tokenizer': None,
    'post_processor': _beginning(begin, vocabulary.pad),
    'decoder': {
      'type': 'Sequence',
      'decoders': [{'type': 'ByteFallback'}, {'type': 'Fuse'}],
    },
    'model': _model(model, unknown),
  }
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': begin,
    'eos_token': end,
    'unk_token': unknown,
    'pad_token': end,
    'clean_up_tokenization_spaces': False,
    # transformers then does not search a text for names of special tokens.
    'split_special_tokens': True,
    'model_max_length': length,
  }
  return {'tokenizer.json': tokenizer, 'tokenizer_config.json': config}


def _special(id: int, name: str) -> dict[str, Any]:
  """The entry of a special token, which stands for no part of a text."""
  return {
    'id': id,
    'content': name,
    'single_word': False,
    'lstrip': False,
    'rstrip': False,
    'normalized': False,
    'special': True,
  }


def _beginning(name: str, id: int) -> dict[str, Any]:
  """The post-processor that puts a token before a text or a pair of texts."""
  token = {'SpecialToken': {'id': name, 'type_id': 0}}
  texts = [{'Sequence': {'id': which, 'type_id': 0}} for which in ('A', 'B')]
  return {
    'type': 'TemplateProcessing',
    'single': [token, texts[0]],
    'pair': [token, *texts],
    'special_tokens': {name: {'id': name, 'ids': [id], 'tokens': [name]}},
  }


def _model(model, unknown: str) -> dict[str, Any]:
  kind = model.trainer_spec.model_type
  pieces = [
    piece.piece.replace(SPACE_MARK, ' ')
    if piece.type in (_NORMAL, _USER)
    else piece.piece
    for piece in model.pieces
  ]
  if kind == _UNIGRAM:
    return {
      'type': 'Unigram',
      'unk_id': pieces.index(unknown),
      'vocab': [
        [text, piece.score]
        for text, piece in zip(pieces, model.pieces, strict=True)
      ],
      'byte_fallback': True,
    }
  if kind not in (_BPE, _CHAR):
    raise ValueError(
      f'The SentencePiece model has model_type {kind}, and only unigram, bpe'
      ' and char can be exported.'
    )
  return {
    'type': 'BPE',
    'dropout': None,
    'unk_token': unknown,
    'continuing_subword_prefix': None,
    'end_of_word_suffix': None,
    'fuse_unk': False,
    'byte_fallback': True,
    'ignore_merges': False,
    'vocab': {piece: i for i, piece in enumerate(pieces)},
    'merges': _merges(model, pieces) if kind == _BPE else [],
  }


def _merges(model, pieces: list[str]) -> list[list[str]]:
  """Pairs of pieces in the order in which SentencePiece merges them.

  SentencePiece first merges the pair that gives the piece with the best score.
  So all pairs that give the same piece come together, at the piece's rank.
  """
  score = {
    text: piece.score
    for text, piece in zip(pieces, model.pieces, strict=True)
    if piece.type == _NORMAL
  }
  merges = []
  for text in sorted(score, key=lambda text: -score[text]):
    cuts = [(text[:i], text[i:]) for i in range(1, len(text))]
    merges += [list(cut) for cut in cuts if set(cut) <= score.keys()]
  return merges
