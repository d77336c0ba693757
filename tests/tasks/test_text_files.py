import gzip
import json

import pytest

from tasks import splits, text_files

FIELDS = {'id': str, 'paragraphs': [str]}


def write_json(path, values):
  path.write_text(''.join(json.dumps(v) + '\n' for v in values), 'utf-8')
  return path


def record(i):
  return {'id': f'r{i}', 'paragraphs': ['一', '二'], 'author': '不要'}


def test_records_of_json_lines_have_only_the_fields_asked_for(tmp_path):
  path = write_json(tmp_path / 'a.jsonl', [record(1)])
  source = text_files.json_lines({'train': path}, FIELDS)
  assert list(source.records('train')) == [
    {'id': 'r1', 'paragraphs': ['一', '二']}
  ]


def test_a_line_break_in_plain_text_is_written_as_two_characters(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes('\ufeff春\\n夏\r\n\n\\\\n\n'.encode())
  source = text_files.plain_text({'train': path})
  assert list(source.records('train')) == [
    {'text': '春\n夏'},
    {'text': '\\n'},
  ]


def test_relative_names_and_patterns_start_at_the_data_directory(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('WUDAO_DATA', str(tmp_path))
  (tmp_path / 'my').mkdir()
  (tmp_path / 'my' / 'b.txt').write_text('乙\n', 'utf-8')
  with gzip.open(tmp_path / 'my' / 'a.txt.gz', 'wt', encoding='utf-8') as f:
    f.write('甲\n')
  source = text_files.plain_text({'train': 'my/*.txt*'})
  assert [r['text'] for r in source.records('train')] == ['甲', '乙']


def test_one_file_is_split_by_the_hash_of_the_id_wherever_a_record_stands(
  tmp_path,
):
  records = [record(i) for i in range(300)]
  one = write_json(tmp_path / 'a.jsonl', records)
  two = write_json(tmp_path / 'b.jsonl', records[:100:-1])
  held_out = [
    {r['id'] for r in text_files.json_lines(p, FIELDS).records('validation')}
    for p in (one, two)
  ]
  assert held_out[0] >= held_out[1] > set()
  trained = {
    r['id'] for r in text_files.json_lines(one, FIELDS).records('train')
  }
  assert not trained & held_out[0]
  assert len(trained | held_out[0]) == 300
  # 5% of 300 records is 15, with a standard deviation of 3.8.
  assert 3 < len(held_out[0]) < 28


def test_the_split_of_a_key_is_the_documented_number():
  # SHA-256 of '' starts with e3b0c44298fc1c14, which is 52 modulo 100. For 'r9'
  # the number is 3, which is below 5. For no other key from r0 to r59 is it
  # below 5.
  assert int('e3b0c44298fc1c14', 16) % 100 == 52
  assert splits.by_hash('') == 'train'
  assert [i for i in range(60) if splits.by_hash(f'r{i}') != 'train'] == [9]


def test_an_unknown_split_is_an_error_that_names_the_splits(tmp_path):
  path = write_json(tmp_path / 'a.jsonl', [record(1)])
  with pytest.raises(ValueError, match="one of train, validation, got 'test'"):
    text_files.json_lines(path, FIELDS).records('test')


def test_lines_of_blanks_are_no_records(tmp_path):
  path = write_json(tmp_path / 'a.jsonl', [record(1)])
  path.write_bytes(b'   \n' + path.read_bytes() + b'\t\r\n\n')
  source = text_files.json_lines({'train': path}, FIELDS)
  assert len(list(source.records('train'))) == 1


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'year': int}, "the field 'year' must be declared as str, .* got int"),
    ({'lines': []}, r"the field 'lines' must be declared as str, .* got \[\]"),
    (int, 'the record must be declared as str, .* got int'),
    ({'turns': [{'n': None}]}, "the field 'n' must be declared as .* got None"),
  ],
)
def test_a_field_that_is_no_text_is_told_when_it_is_declared(fields, message):
  with pytest.raises(ValueError, match=message):
    text_files.json_lines('a.jsonl', fields)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
  source = text_files.plain_text(tmp_path / 'nothing.txt')
  with pytest.raises(ValueError, match=r'nothing\.txt must exist'):
    source.records('train')


@pytest.mark.parametrize(
  ('line', 'reason'),
  [
    (b'{"id": "\xff", "paragraphs": []}', "can't decode byte 0xff"),
    (b'{"id": "a", "paragraphs": [', 'Expecting value'),
    (b'{"id": "a"}', "must have the field 'paragraphs'"),
    (b'{"id": 7, "paragraphs": []}', 'id must be a string, got 7'),
    (b'{"id": "a", "paragraphs": "b"}', "must be a list, got 'b'"),
    (b'{"id": "a", "paragraphs": ["b", null]}', r'paragraphs\[1\] must be a'),
    (rb'{"id": "\ud800", "paragraphs": []}', 'surrogates not allowed'),
    (b'[1]', 'the record must be a JSON object'),
    (b'[' * 100_000, 'nested too deep'),
  ],
)
def test_a_malformed_line_stops_the_reading_with_file_and_line(
  tmp_path, line, reason
):
  path = tmp_path / 'a.jsonl'
  good = json.dumps(record(1)).encode()
  path.write_bytes(good + b'\n' + line + b'\n' + good + b'\n')
  source = text_files.json_lines({'train': path}, FIELDS)
  with pytest.raises(ValueError, match=reason) as error:
    source.records('train')
  assert str(error.value).startswith(f'{path}:2: ')
  assert '1 of 3 lines' in str(error.value)
  assert '\n' not in str(error.value)


def test_bad_lines_within_the_set_fraction_are_skipped_with_a_warning(
  tmp_path, caplog
):
  path = tmp_path / 'a.txt'
  path.write_bytes(b'a\n' * 98 + b'\xff\n' + b'b\n')
  source = text_files.plain_text({'train': path}, max_bad_fraction=0.01)
  assert len(list(source.records('train'))) == 99
  assert f'{path}:99: ' in caplog.text


def test_one_bad_line_more_than_the_set_fraction_is_an_error(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(b'a\n' * 97 + b'\xff\n' * 2 + b'b\n')
  source = text_files.plain_text({'train': path}, max_bad_fraction=0.01)
  with pytest.raises(ValueError, match='2 of 100 lines'):
    source.records('train')


def test_a_file_cut_short_is_an_error(tmp_path):
  path = tmp_path / 'a.txt.gz'
  path.write_bytes(gzip.compress(b'a\n' * 10_000)[:-20])
  with pytest.raises(ValueError, match='readable to its end'):
    text_files.plain_text({'train': path}).records('train')


def test_a_file_that_changes_is_checked_again(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(b'a\n')
  source = text_files.plain_text({'train': path})
  source.records('train')
  path.write_bytes(b'a\n\xff\n')
  with pytest.raises(ValueError, match='1 of 2 lines'):
    source.records('train')
