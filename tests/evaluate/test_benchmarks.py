"""Requests are those of lm-evaluation-harness; scores are hand-worked."""

import json
import math

import numpy as np
import pytest

from moe.evaluate import benchmarks
from moe.evaluate.choices import Answer, Request

ROWS = {
  'lambada_openai': {'id': 'a', 'text': 'He gave her\n\nthe red book'},
  'wsc273': {
    'id': 'b',
    'sentence': 'The cup fell off  the tray because [MASK] was wet.',
    'candidates': ['The cup', 'The tray'],
    'label': 1,
    'schema': 4,
  },
  'winogrande': {
    'id': 'c',
    'sentence': 'Ann taught Bea, so _ learnt much.',
    'option1': 'Ann',
    'option2': 'Bea',
    'answer': '2',
  },
  'xcopa_zh': {
    'id': 'd',
    'premise': '我開了燈。',
    'choice1': '房間亮了。',
    'choice2': '房間暗了。',
    'question': 'effect',
    'label': 0,
  },
  'xwinograd_zh': {
    'id': 'e',
    'text': '他爸爸扶著他，因為他累了。',
    'pronoun': '他',
    'candidates': [['爸爸', False], ['孩子', True]],
  },
}
BENCHMARKS = {one.name: one for one in benchmarks.BENCHMARKS}


def read(name):
  return BENCHMARKS[name].read(ROWS[name])


def test_lambada_asks_for_the_last_word():
  item = read('lambada_openai')
  assert item.requests == (Request('He gave her\n\nthe red', ' book'),)


def test_winograd_sets_ask_for_the_rest_after_each_option():
  assert read('winogrande').requests == (
    Request('Ann taught Bea, so Ann', ' learnt much.'),
    Request('Ann taught Bea, so Bea', ' learnt much.'),
  )
  # The harness writes a space, and the rest of the sentence begins with another
  # one.
  assert read('wsc273').requests == (
    Request('The cup fell off the tray because the cup', '  was wet.'),
    Request('The cup fell off the tray because the tray', '  was wet.'),
  )
  # The pronoun occurs three times; the item asks about the last one.
  assert read('xwinograd_zh').requests[1] == Request(
    '他爸爸扶著他，因為孩子', ' 累了。'
  )


def test_xcopa_asks_for_either_effect():
  assert read('xcopa_zh').requests == (
    Request('我開了燈 所以', ' 房間亮了。'),
    Request('我開了燈 所以', ' 房間暗了。'),
  )


@pytest.mark.parametrize(
  'name, gold',
  [('wsc273', 1), ('winogrande', 1), ('xcopa_zh', 0), ('xwinograd_zh', 1)],
)
def test_the_right_choice_is_known(name, gold):
  assert read(name).gold == gold


def test_normalised_accuracies_divide_by_characters_and_bytes():
  row = ROWS['xcopa_zh'] | {'choice1': 'abcd', 'choice2': '亮了'}
  item = BENCHMARKS['xcopa_zh'].read(row)
  # The nats per character are 5/4 and 4/2, those per byte 5/4 and 4/6. So the
  # two measures choose different answers.
  answers = [[Answer(5.0, False), Answer(4.0, False)]]
  right = {
    metric: benchmarks.item_values(metric, [item], answers)[0].tolist()
    for metric in ('acc', 'acc_norm', 'acc_bytes')
  }
  assert right == {'acc': [0.0], 'acc_norm': [1.0], 'acc_bytes': [0.0]}


def test_perplexity_and_bits_of_words_worked_out_by_hand():
  item = read('lambada_openai')
  answers = [[Answer(math.log(2), True)], [Answer(math.log(32), False)]]
  score = lambda metric: benchmarks.metric_score(
    metric, *benchmarks.item_values(metric, [item, item], answers), 'command'
  )
  # Both words have 5 characters with their space. They cost 1 and 5 bits.
  assert score('perplexity').value == pytest.approx(8)
  assert score('bits_per_char').value == pytest.approx(6 / 10)
  assert score('acc').value == pytest.approx(1 / 2)
  assert not score('perplexity').is_higher_better
  assert score('acc').is_higher_better


def test_an_interval_of_equal_items_is_a_point():
  found = benchmarks.metric_score('acc', np.ones(5), np.ones(5), '')
  assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def items(count):
  reader = BENCHMARKS['winogrande'].read
  row = ROWS['winogrande']
  return [
    reader(row | {'sentence': f'{n}: _ {word}.', 'option1': f'{n}'})
    for n in range(count)
    for word in ('won', 'lost')
  ]


def test_examples_come_from_other_groups_and_are_the_same_every_time():
  plain = items(4)
  taught = benchmarks.with_shots(plain, 4)
  assert taught == benchmarks.with_shots(plain, 4)
  for item, before in zip(taught, plain, strict=True):
    context = item.requests[0].context
    assert context.endswith('\n\n' + before.requests[0].context)
    lessons = context.split('\n\n')[:-1]
    assert len(lessons) == 4
    assert set(lessons) <= {p.solved for p in plain if p.group != item.group}
  assert benchmarks.with_shots(plain, 0) == plain


HARNESS_ROWS = {
  'lambada_openai': ROWS['lambada_openai'],
  'wsc273': {
    'text': 'The cup fell off  the tray because [MASK] was wet.',
    'pronoun': '[MASK]',
    'pronoun_loc': 34,
    'options': ['The cup', 'The tray'],
    'label': 1,
  },
  'winogrande': ROWS['winogrande'],
  'xcopa_zh': ROWS['xcopa_zh'],
}
YAML = {
  'lambada_openai': 'lambada/lambada_openai.yaml',
  'wsc273': 'wsc273/default.yaml',
  'winogrande': 'winogrande/default.yaml',
  'xcopa_zh': 'xcopa/default_zh.yaml',
}


@pytest.mark.nightly
@pytest.mark.parametrize('name', HARNESS_ROWS)
def test_the_harness_makes_the_same_requests(name, tmp_path, monkeypatch):
  monkeypatch.setenv('HF_HOME', str(tmp_path / 'home'))
  monkeypatch.setenv('HF_DATASETS_OFFLINE', '1')
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  reason = 'lm_eval is missing, which the extra interop installs'
  lm_eval = pytest.importorskip('lm_eval', reason=reason)
  from lm_eval.tasks import TaskManager

  assert lm_eval.__version__ == benchmarks.HARNESS
  base = f'{lm_eval.__path__[0]}/tasks/{YAML[name]}'
  data = tmp_path / 'rows.json'
  data.write_text(json.dumps(HARNESS_ROWS[name]), encoding='utf-8')
  (tmp_path / 'tasks').mkdir()
  (tmp_path / 'tasks' / 'ours.yaml').write_text(
    f'include: {base}\ntask: ours\ndataset_path: json\ndataset_name: null\n'
    f'dataset_kwargs: {{data_files: {{test: {data}}}}}\n'
    'training_split: null\nvalidation_split: null\ntest_split: test\n'
  )
  manager = TaskManager(include_path=str(tmp_path / 'tasks'))
  loaded = manager.load(['ours'])
  task = loaded['tasks']['ours'] if 'tasks' in loaded else loaded['ours']
  task.build_all_requests(rank=0, world_size=1)
  asked = [Request(*instance.args) for instance in task.instances]
  assert tuple(asked) == read(name).requests
