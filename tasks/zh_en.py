"""Declares tasks of translation between Chinese and English, both ways."""

from tasks import registry
from tasks.datasets.zh_corpora.corpus import Corpus
from tasks.text_files import Record


def to_chinese(pair: Record) -> tuple[str, str]:
  """(prompt, answer): the English text, and its Chinese translation."""
  return f'英文：{pair["en"]}\n中文：', pair['zh']


def to_english(pair: Record) -> tuple[str, str]:
  """(prompt, answer): the Chinese text, and its English translation."""
  return f'中文：{pair["zh"]}\n英文：', pair['en']


registry.add_prefix_task('tatoeba_en_zh', Corpus('tatoeba'), to_chinese)
registry.add_prefix_task('tatoeba_zh_en', Corpus('tatoeba'), to_english)
registry.add_prefix_task('law_en_zh', Corpus('law_zh_en'), to_chinese)
registry.add_prefix_task('law_zh_en', Corpus('law_zh_en'), to_english)
