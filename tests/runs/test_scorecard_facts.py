"""Facts of a scorecard that come from files of runs and of token stores."""

import json
import types

from moe.runs import scorecard_facts


def test_only_the_built_in_corpora_have_their_licence():
  sources = {
    'mine': 'zh_corpora/tatoeba from https://a.example, licence CC BY 2.0 FR',
    'builtin': 'lines of /home/a/tasks/corpora/poems.jsonl',
  }
  stores = [
    types.SimpleNamespace(manifest={'task': task, 'source': source})
    for task, source in sources.items()
  ]
  weights, mine, builtin = scorecard_facts.licences(stores)
  assert weights == ('weights', 'Apache-2.0')
  assert mine == ('mine', sources['mine'])
  assert 'no rights reserved' in builtin[1]


def test_the_cost_of_a_run_includes_the_products_of_its_optimizer(tmp_path):
  counts = {'flops_per_token_train': 6, 'flops_per_token_optimizer': 2}
  (tmp_path / 'run.json').write_text(json.dumps(counts))
  (tmp_path / 'log.jsonl').write_text('{"step": 3, "tokens": 100}\n')
  cost = scorecard_facts.cost_of(str(tmp_path), 3)
  assert cost['FLOPs per token, optimizer'] == 2
  assert cost['FLOPs of training'] == 100 * (6 + 2)
