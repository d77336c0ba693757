"""Facts of a scorecard that come from the manifests of token stores."""

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
