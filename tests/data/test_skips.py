"""Which batch each step reads if a run leaves out batches."""

import pytest

from moe.data import skips


def test_the_stream_is_the_same_without_the_skipped_batches():
  found = skips.Skips(((0, 2), (5, 6), (8, 11)))
  left_out = {0, 1, 5, 8, 9, 10}
  wanted = [n for n in range(100) if n not in left_out]
  assert [found.number(step) for step in range(94)] == wanted


def test_skips_are_joined_where_they_meet():
  found = skips.Skips(((3, 5),)).also(5, 7).also(9, 10).also(4, 6)
  assert found.ranges == ((3, 7), (9, 10))


def test_skips_of_batches_to_come_do_not_change_the_steps_so_far(tmp_path):
  recorded = [[2, 3]]
  # Steps 0 to 4 read the batches 0, 1, 3, 4 and 5.
  skips.check_resumed(skips.Skips(((2, 3), (6, 8))), recorded, 5, tmp_path)
  for other in ((), ((2, 4),), ((2, 3), (5, 6))):
    with pytest.raises(
      ValueError, match=r'must hold \[\(2, 3\)\] for the 5 st'
    ):
      skips.check_resumed(skips.Skips(other), recorded, 5, tmp_path)


def test_the_file_of_a_run_comes_back(tmp_path):
  assert skips.read(tmp_path).ranges == ()
  skips.write(tmp_path, skips.Skips(((3, 7), (9, 10))))
  assert skips.read(tmp_path).ranges == ((3, 7), (9, 10))


@pytest.mark.parametrize('text', ['[[5, 3]]', '[[3]]', '[7]', '{', '[[-1, 2]]'])
def test_a_damaged_file_is_an_error(tmp_path, text):
  (tmp_path / skips.NAME).write_text(text)
  with pytest.raises(ValueError):
    skips.read(tmp_path)
