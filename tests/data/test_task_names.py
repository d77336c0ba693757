"""The error about an unknown task names similar ones."""

import pytest

from moe.data import task_names


def test_a_misspelt_name_is_refused_with_the_nearest_ones():
  names = {'poems_shi', 'poems_ci', 'laws'}
  task_names.check('laws', names)
  with pytest.raises(ValueError, match='mean poems_shi or poems_ci?'):
    task_names.check('poems_sh', names)
