"""Tests with the real poems. They are skipped if the poems are missing."""

import pytest

from tasks import poems, text_files
from tasks.datasets.zh_corpora import sources

SOURCE = sources.SOURCES['poems_shi']


def documents(split):
  directory = text_files.data_directory()
  if not all((directory / name).is_file() for name in SOURCE.files.values()):
    pytest.skip(f'no poems in {directory}: set $WUDAO_DATA')
  return [poems.document(poem) for poem in SOURCE.prepared(split)]


def test_a_document_is_the_title_a_line_break_and_the_lines():
  assert documents('validation')[0] == (
    '小桃\n和煙和雨遮敷水，映竹映村連灞橋。撩亂春風耐寒令，到頭贏得杏花嬌。'
  )


@pytest.mark.slow
def test_no_poem_is_in_both_splits():
  train, validation = (
    {text.partition('\n')[2] for text in documents(split)}
    for split in ('train', 'validation')
  )
  assert len(train) > 80_000 and len(validation) > 2_900
  assert not train & validation
