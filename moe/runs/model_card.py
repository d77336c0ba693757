"""Makes the README.md of exported weights: the model, its data, its limits."""

import json
import os
from typing import Any

from moe.checkpoint import listing
from moe.models.anatomy import anatomy
from moe.runs import scorecard
from moe.runs.run import TrainedRun

LICENCE = 'apache-2.0'
# Task -> licence of its texts, for texts that come with the project.
_LICENCES = {'builtin': 'CC0-1.0, see tasks/corpora/README.md'}
_UNKNOWN = 'not recorded; an export after launch.scorecard has it'

USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained('{folder}')
model = AutoModelForCausalLM.from_pretrained('{folder}')
inputs = tokenizer({prompt!r}, return_tensors='pt')
written = model.generate(
  **inputs, max_new_tokens={tokens}, do_sample=True, temperature=0.8
)
print(tokenizer.decode(written[0], skip_special_tokens=True))
```"""


def card(trained: TrainedRun, model_type: str, folder: str) -> str:
  """The text of README.md for an exported model.

  Args:
    trained: the run.
    model_type: the entry `model_type` of config.json.
    folder: name of the model directory, which the example loads.
  """
  run, model = trained.run, anatomy(trained.run.model)
  counts = _read(trained.workdir, 'run.json')
  steps = os.path.join(listing.steps_dir(trained.workdir), str(trained.step))
  meta = listing.read_meta(steps)
  experts = model.experts
  kind = f'{len(model.layers)} layers of width {model.d_model}'
  if experts:
    kind += (
      f', {model.num_sparse} of them sparse: {experts.num_experts} experts,'
      f' {experts.num_active:g} of them active'
    )
  measured = scorecard.stored(trained.workdir, trained.step)
  tasks = [run.data.train, *run.data.evaluation]
  licences = {task: _LICENCES.get(task, _UNKNOWN) for task in tasks}
  if measured:
    licences = dict(measured['licences'])
  scores = _read(trained.workdir, 'baselines.json') | _scores(measured)
  prompt = next(iter(run.prompts), '')
  header = {
    'license': LICENCE,
    'library_name': 'transformers',
    'pipeline_tag': 'text-generation',
    'tags': ['wudao-moe', model_type],
  }
  sections = [
    '---\n' + '\n'.join(f'{k}: {json.dumps(v)}' for k, v in header.items()),
    f'---\n# {folder}\n\nA language model trained with wudao-moe: {kind}.',
    '## Size\n\n' + _table(_sizes(counts, run)),
    '## Training\n\n'
    + _table(
      {
        'steps': trained.step,
        'tokens a step': run.data.batch_size * run.data.sequence_length,
        'task': run.data.train,
        'hash of the data': meta.get('manifest_hash', 'not recorded'),
        'seed': run.settings.seed,
        **{f'licence of {task}': text for task, text in licences.items()},
      }
    ),
    '## Evaluation\n\nBits per character of held-out texts, with n-grams of the'
    ' training texts. If the run has a scorecard, its scores follow with their'
    ' 95% intervals.\n\n' + _table(_held_out(meta) | scores),
    '## Use\n\n'
    + USE.format(folder=folder, prompt=prompt, tokens=_room(run, prompt)),
    '## Limits\n\n'
    f'Texts of up to {run.data.sequence_length} tokens were trained on. A text'
    ' begins with token 0, which the tokenizer puts there. The model was'
    ' trained to continue text, not to follow instructions, to be true or to be'
    ' harmless. It may repeat its training texts.',
    '## Cite\n\nName wudao-moe, its version'
    f' {(meta.get("versions") or {}).get("wudao-moe", "(not recorded)")}, and'
    f' the SHA-256 of the vocabulary, {trained.vocabulary.sha256}.',
  ]
  return '\n\n'.join(sections).replace('\n\n---\n', '\n---\n', 1) + '\n'


def _held_out(meta: dict[str, Any]) -> dict[str, Any]:
  """The task and the numbers of the evaluation that a checkpoint records."""
  return {
    name: value
    for name, value in (meta.get('metrics') or {}).items()
    if isinstance(value, float) or name == 'task'
  }


def _scores(measured: scorecard.Card | None) -> dict[str, str]:
  """The scores of a scorecard by name, as text."""
  found = {}
  for one in scorecard.scores_of(measured) if measured else ():
    text = f'{one.value:.4f}'
    if one.low is not None:
      text += f' ({one.low:.4f} to {one.high:.4f})'
    found[one.name] = f'{text} {one.unit}, n = {one.n:,}'
  return found


def _sizes(counts: dict[str, Any], run) -> dict[str, Any]:
  return {
    'parameters': _number(counts.get('params_total')),
    'active for a token': _number(counts.get('params_active')),
    'FLOPs of a token, forward': _number(counts.get('flops_per_token_forward')),
    'FLOPs of a token, optimizer': _number(
      counts.get('flops_per_token_optimizer')
    ),
    'context': run.data.sequence_length,
    'vocabulary': run.model.vocab_size,
  }


def _number(value: int | None) -> str:
  return 'not recorded' if value is None else f'{value:,}'


def _room(run, prompt: str) -> int:
  return max(1, run.data.sequence_length - len(prompt) - 1)


def _table(rows: dict[str, Any]) -> str:
  shown = lambda value: f'{value:.4f}' if isinstance(value, float) else value
  lines = [f'| {name} | {shown(value)} |' for name, value in rows.items()]
  return '\n'.join(['| what | |', '|---|---|', *lines])


def _read(workdir: str, name: str) -> dict[str, Any]:
  """Reads a JSON file of a run; empty if the run has no such file."""
  try:
    with open(os.path.join(workdir, name), encoding='utf-8') as f:
      return json.load(f)
  except FileNotFoundError:
    return {}
