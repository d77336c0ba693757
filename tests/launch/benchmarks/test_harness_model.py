"""lm-evaluation-harness scores our model on three tasks, without a network."""

import json
import math

import pytest

from launch import harness

REASON = 'lm_eval is missing, which the extra interop installs'
TASKS = {
  'likelihoods': """
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: 1
target_delimiter: ""
metric_list: [{metric: acc}]
""",
  'texts': """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{context}}"
metric_list: [{metric: byte_perplexity}]
""",
  'samples': """
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "x"
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 4}
metric_list: [{metric: exact_match}]
""",
}


@pytest.mark.nightly
def test_three_tasks_have_the_scores_worked_out_by_hand(
  uniform_directory, tmp_path, monkeypatch
):
  for name in ('HF_DATASETS_OFFLINE', 'HF_HUB_OFFLINE'):
    monkeypatch.setenv(name, '1')
  monkeypatch.setenv('HF_HOME', str(tmp_path / 'home'))
  lm_eval = pytest.importorskip('lm_eval', reason=REASON)
  from lm_eval.tasks import TaskManager

  from launch.benchmarks.harness_model import Wudao

  rows = tmp_path / 'rows.json'
  # The second choice has fewer tokens, so a uniform model prefers it.
  row = {'context': '春眠', 'choices': ['不覺曉', '不']}
  rows.write_text(json.dumps(row, ensure_ascii=False), encoding='utf-8')
  folder = tmp_path / 'tasks'
  folder.mkdir()
  for name, text in TASKS.items():
    head = f'task: {name}\ndataset_path: json\ntest_split: test\n'
    head += f'dataset_kwargs: {{data_files: {{test: {rows}}}}}'
    (folder / f'{name}.yaml').write_text(head + text, encoding='utf-8')
  model = Wudao(checkpoint=str(uniform_directory))
  found = lm_eval.simple_evaluate(
    model,
    tasks=list(TASKS),
    task_manager=TaskManager(include_path=str(folder)),
    bootstrap_iters=0,
  )['results']
  assert found['likelihoods']['acc,none'] == 1
  # The text has 2 tokens, each with probability 1/320, and 6 bytes.
  assert found['texts']['byte_perplexity,none'] == pytest.approx(
    math.exp(2 * math.log(320) / 6), rel=1e-4
  )
  assert found['samples']['exact_match,none'] == 0


def test_a_missing_harness_is_named(capsys, monkeypatch):
  monkeypatch.setattr(harness.importlib.util, 'find_spec', lambda name: None)
  assert harness.main(['run']) == 2
  assert 'wudao-moe[interop]' in capsys.readouterr().err
