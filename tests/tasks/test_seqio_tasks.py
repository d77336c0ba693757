"""Seqio reads declared tasks, also with the lines of tasks/ADDING.md."""

import pathlib
import re

import pytest

seqio = pytest.importorskip('seqio')

from moe.data import cache  # noqa: E402
from moe.data.store import Store, find_stores  # noqa: E402
from moe.modalities.text import train_vocabulary  # noqa: E402
from tasks import seqio_tasks, stores, text_files  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
TEXT = '春眠不覺曉，處處聞啼鳥。 \n夜來風雨聲，\u2581花落知多少。'


def trained(path, text):
  train_vocabulary([text] * 3, 300, path, model_type='char')
  return path


@pytest.fixture(scope='module')
def model_path(tmp_path_factory):
  directory = tmp_path_factory.mktemp('vocabulary')
  return trained(directory / 'vocabulary.model', TEXT)


@pytest.fixture
def declared(declare, tmp_path):
  """Two tasks for a test; seqio keeps them until the next `register`."""
  path = tmp_path / 'a.txt'
  path.write_text(TEXT.replace('\n', '\\n') + '\n', 'utf-8')
  source = text_files.plain_text({'train': path})
  declare.add_text_task('t_text', source, lambda r: r['text'])
  declare.add_prefix_task('t_prefix', source, lambda r: ('春', r['text']))
  return declare


def dataset(name, split='train'):
  provider = seqio.get_mixture_or_task(name)
  return provider.get_dataset(sequence_length=None, split=split, shuffle=False)


def test_a_text_task_is_tokenised_and_ends_in_the_end_mark(
  declared, model_path
):
  seqio_tasks.register(model_path)
  (example,) = dataset('t_text').as_numpy_iterator()
  assert set(example) == {'targets', 'targets_pretokenized'}
  assert example['targets_pretokenized'].decode() == TEXT
  assert example['targets'].dtype == 'int32'
  tokens = seqio.get_mixture_or_task('t_text').output_features['targets']
  assert example['targets'].tolist() == [*tokens.vocabulary.encode(TEXT), 1]


def test_a_prefix_task_has_inputs_without_an_end_mark(declared, model_path):
  seqio_tasks.register(model_path)
  (example,) = dataset('t_prefix').as_numpy_iterator()
  assert example['inputs'][-1] != 1 and example['targets'][-1] == 1
  assert example['inputs_pretokenized'].decode() == '春'


def test_documents_are_read_without_a_vocabulary_and_tokens_are_not(declared):
  seqio_tasks.register()
  task = seqio.get_mixture_or_task('t_text')
  assert list(task.source.documents('train')) == [{'targets': TEXT}]
  with pytest.raises(ValueError, match='tokenised with a vocabulary, got none'):
    dataset('t_text')


def test_a_dataset_keeps_the_vocabulary_it_was_built_with(
  declared, model_path, tmp_path
):
  seqio_tasks.register(model_path)
  built = dataset('t_text')
  seqio_tasks.register(trained(tmp_path / 'other.model', '花 落'))
  (example,), (other,) = (
    list(d.as_numpy_iterator()) for d in (built, dataset('t_text'))
  )
  assert example['targets'].tolist() != other['targets'].tolist()
  seqio_tasks.register(model_path)
  (again,) = dataset('t_text').as_numpy_iterator()
  assert again['targets'].tolist() == example['targets'].tolist()


def test_a_malformed_corpus_is_an_error_before_tensorflow_reads_it(
  declared, model_path, tmp_path
):
  (tmp_path / 'a.txt').write_bytes(b'\xff\n')
  seqio_tasks.register(model_path)
  with pytest.raises(ValueError, match=r'a\.txt:1: '):
    dataset('t_text')


def test_a_mixture_gives_the_examples_of_its_tasks_by_their_sizes(
  declared, model_path
):
  declared.add_text_task(
    't_other', declared.TASKS['t_text'].source, lambda r: '春'
  )
  declared.add_mixture('t_mix', ['t_text', 't_other'])
  declared.add_mixture('t_even', ['t_text', 't_other'], [1, 1])
  seqio_tasks.register(model_path)
  assert {rate for _, rate in cache.resolve('t_even')} == {1}
  mixture = seqio.get_mixture_or_task('t_mix')
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  assert rates == {'t_text': len(TEXT), 't_other': 1}
  examples = mixture.get_dataset({'targets': 64}, split='train', shuffle=False)
  lengths = {len(e['targets']) for e in examples.take(90).as_numpy_iterator()}
  assert 2 in lengths and len(lengths) == 2


def test_a_name_that_seqio_has_is_refused(declared, model_path):
  seqio_tasks.register()
  taken = seqio.TaskRegistry.get('t_text')
  seqio.TaskRegistry.add(
    't_taken',
    source=seqio.FunctionDataSource(lambda split, shuffle_files: 0, ['train']),
    output_features=taken.output_features,
    preprocessors=[],
  )
  source = declared.TASKS['t_text'].source
  declared.add_text_task('t_taken', source, lambda r: r['text'])
  try:
    with pytest.raises(ValueError, match="got 't_taken', which seqio has"):
      seqio_tasks.register()
  finally:
    seqio.TaskRegistry.remove('t_taken')


def test_the_five_lines_of_the_page_give_the_tokens_of_the_token_store(
  tmp_path, monkeypatch
):
  task = 'builtin_couplets'
  directory = stores.prepare(
    [(task, ['validation'])], tmp_path / 'cache', vocab_size=800
  )
  page = (ROOT / 'tasks/ADDING.md').read_text('utf-8')
  blocks = re.findall('```python\n(.*?)```', page, re.DOTALL)
  [lines] = [block for block in blocks if 'get_mixture_or_task' in block]
  assert len([line for line in lines.splitlines() if line]) <= 5
  monkeypatch.chdir(directory)
  assert "'poems_shi'" in lines and "'vocabulary.model'" in lines
  lines = lines.replace("'poems_shi'", f'{task!r}')
  names = {}
  exec(
    compile(lines.replace("'train'", "'validation'"), 'lines', 'exec'), names
  )
  (store,), _ = find_stores(directory, task, 'validation')
  records = Store(store).read(range(Store(store).lengths.size))
  given = [e['targets'].tolist() for e in names['dataset'].as_numpy_iterator()]
  assert given == [record['tokens'].tolist() for record in records]


def test_tasks_of_different_features_are_mixed_in_stores_alone(
  declared, model_path
):
  declared.add_mixture('t_mixed', ('t_text', 't_prefix'))
  declared.add_mixture('t_rated', ('t_text', 't_prefix'), (3, 1))
  seqio_tasks.register(model_path)
  sizes = {
    name: seqio_tasks.registry.TASKS[name].num_chars
    for name in ('t_text', 't_prefix')
  }
  assert dict(cache.resolve('t_mixed')) == sizes
  assert dict(cache.resolve('t_rated')) == {'t_text': 3, 't_prefix': 1}
  assert cache.splits('t_mixed') == {'train': ['t_text', 't_prefix']}
  with pytest.raises(ValueError, match='t_mixed must have equal features'):
    dataset('t_mixed')
