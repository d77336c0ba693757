import pytest

from moe.data.text_file import read_texts, unescaped


def test_lines_are_read_as_they_are(tmp_path):
  path = tmp_path / 'texts.txt'
  # The file has a byte order mark, line ends of both kinds, empty lines, and no
  # line end after the last line.
  path.write_bytes('\ufeff 春\u2028眠 \r\n\r\n \t\n題\\n花\\n\n落'.encode())
  assert read_texts(str(path)) == [' 春\u2028眠 ', '題\n花\n', '落']


@pytest.mark.parametrize(
  ('written', 'meant'),
  [
    (r'春\n夏', '春\n夏'),
    (r'\\nabla', r'\nabla'),
    (r'\\\n', '\\\n'),
    (r'\alpha\\', '\\alpha\\'),
  ],
)
def test_a_text_can_hold_line_breaks_and_backslashes(written, meant):
  assert unescaped(written) == meant
