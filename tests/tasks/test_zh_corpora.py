import gzip
import json
import zipfile

import pytest
import requests

from tasks import splits
from tasks.datasets.zh_corpora import corpus, sources


@pytest.fixture
def empty(tmp_path, monkeypatch):
  """A data directory without files and a cache without corpora."""
  monkeypatch.setenv('WUDAO_DATA', str(tmp_path / 'data'))
  monkeypatch.setenv('WUDAO_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'data'


def put(directory, name, records):
  path = directory / name
  path.parent.mkdir(parents=True, exist_ok=True)
  with gzip.open(path, 'wt', encoding='utf-8') as f:
    f.writelines(json.dumps(record) + '\n' for record in records)
  return path


@pytest.mark.parametrize('name', ['poems_shi', 'laws', 'crosswoz'])
def test_tfds_gives_back_the_same_records(name, corpora):
  # The records of these three corpora hold all kinds of values: strings, lists
  # of strings, lists of lists, and lists of objects.
  for split in splits.NAMES:
    expected = list(sources.SOURCES[name].prepared(split))
    assert list(corpus.Corpus(name).records(split)) == expected
    assert expected


@pytest.mark.parametrize('name', sources.SOURCES)
def test_no_group_is_in_both_splits(name, corpora):
  source = sources.SOURCES[name]
  train, validation = (
    {source.group_fn(record) for record in source.prepared(split)}
    for split in splits.NAMES
  )
  assert train and validation and not train & validation


def test_articles_of_a_law_held_out_of_the_laws_are_in_no_training_pair(
  corpora,
):
  held_out = {
    law['pcode'] for law in sources.SOURCES['laws'].prepared('validation')
  }
  pairs = {
    pair['pcode'] for pair in sources.SOURCES['law_zh_en'].prepared('train')
  }
  assert held_out and pairs and not held_out & pairs


def test_an_unknown_split_is_an_error_that_names_the_splits(corpora):
  with pytest.raises(ValueError, match="train, validation, got 'test'"):
    corpus.Corpus('laws').records('test')


def test_a_prepared_file_that_changed_is_an_error(empty):
  page = {'path': 'a.md', 'text': '甲'}
  pages = [page | {'path': f'{i}.md'} for i in range(60)]
  put(empty, 'text/react_docs_zh_hant.jsonl.gz', pages)
  pages_of = corpus.Corpus('react_docs')
  assert len(list(pages_of.records('train'))) > 50
  put(empty, 'text/react_docs_zh_hant.jsonl.gz', pages[1:])
  with pytest.raises(ValueError, match='have changed: delete .*react_docs'):
    pages_of.records('train')


def test_a_malformed_prepared_file_is_an_error_with_file_and_line(empty):
  path = put(empty, 'text/react_docs_zh_hant.jsonl.gz', [{'path': 'a.md'}])
  with pytest.raises(ValueError) as error:
    corpus.Corpus('react_docs').records('train')
  assert str(error.value).startswith(f'{path}:1: ')


def test_a_corpus_without_files_or_rules_says_which_file_to_put_where(empty):
  with pytest.raises(ValueError, match=r'got no .*luxun_train\.jsonl\.xz: put'):
    corpus.Corpus('luxun').records('train')


def test_a_corpus_that_cannot_be_downloaded_says_what_to_do(empty, monkeypatch):
  def refuse(url, timeout):
    raise requests.ConnectionError('no route to host')

  monkeypatch.setattr(requests, 'head', refuse)
  with pytest.raises(ValueError, match=r'set \$WUDAO_DATA') as error:
    corpus.Corpus('react_docs').records('train')
  assert 'archive/387bcdcb' in str(error.value)


def test_a_downloaded_archive_is_read_and_split_by_hash(
  empty, tmp_path, monkeypatch
):
  archive = tmp_path / 'archive.zip'
  with zipfile.ZipFile(archive, 'w') as f:
    f.writestr('zh-hant-387b/README.md', 'not wanted')
    for i in range(90):
      f.writestr(f'zh-hant-387b/content/docs/{i:02}.md', f'第{i}頁')
  tfds = pytest.importorskip('tensorflow_datasets')
  manager = tfds.download.DownloadManager
  monkeypatch.setattr(manager, 'download', lambda self, url: archive)
  found = requests.Response()
  found.status_code = 302
  monkeypatch.setattr(requests, 'head', lambda url, timeout: found)
  pages_of = corpus.Corpus('react_docs')
  pages = {s: list(pages_of.records(s)) for s in splits.NAMES}
  assert pages['train'][0] == {'path': 'content/docs/00.md', 'text': '第0頁'}
  paths = {s: {page['path'] for page in pages[s]} for s in splits.NAMES}
  assert paths['validation'] and not paths['train'] & paths['validation']
  assert len(paths['train'] | paths['validation']) == 90
