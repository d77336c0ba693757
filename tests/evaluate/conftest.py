"""A vocabulary for texts of two scripts."""

import pytest

from moe.modalities.text import train_vocabulary

LINES = ['the cat sat on the mat', 'the cat is on it', '貓在桌上，狗在桌下。']


@pytest.fixture(scope='session')
def vocabulary(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'vocabulary.model'
  return train_vocabulary(LINES, 310, path)
