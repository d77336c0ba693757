"""Tests launch.report, which writes a page about a run."""

from launch import report


def test_it_prints_the_path_of_the_page(tmp_path, capsys):
  (tmp_path / 'log.jsonl').write_text('{"step": 1, "loss": 2.0, "time": {}}\n')
  output = tmp_path / 'page.html'
  assert report.main([str(tmp_path), f'--output={output}']) == 0
  assert capsys.readouterr().out == f'{output}\n'
  assert output.read_text().startswith('<!doctype html>')


def test_a_directory_without_a_log_is_an_error_of_one_sentence(
  tmp_path, capsys
):
  assert report.main([str(tmp_path)]) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1
  assert 'must hold at least one step, got none' in error
