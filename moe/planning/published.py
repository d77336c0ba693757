"""Compares measured runs of other projects with our plans for these runs."""

import dataclasses
import functools
import logging
from typing import Any

from moe.models.anatomy import anatomy
from moe.planning import plan
from moe.runs.run import Run
from moe.scale import topology
from moe.scale.topology import Slice

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PublishedRun:
  """A run that another project has measured and published.

  Attributes:
    name: name of the model.
    gin_file: gin file of our run with the same model, sequence length, batch
      and number formats.
    topology: the slice of chips, in the notation of `launch.plan`.
    tflops: measured TFLOP/s per chip, by the project's count of FLOPs.
    mfu: measured MFU, by the project's count of FLOPs.
    has_all_scores: whether the project counts all T x T scores of attention. We
      count half of the scores, since the others are masked.
    source: where the measurement is published.
  """

  name: str
  gin_file: str
  topology: str
  tflops: float
  mfu: float
  has_all_scores: bool
  source: str


PUBLISHED_RUNS = (
  PublishedRun(
    'Mixtral 8x7B',
    'gin_configs/runs/mixtral_8x7b_v5p_128.gin',
    'v5p:4x4x4',
    251.94,
    0.5489,
    True,
    'MaxText, tests/end_to_end/tpu/mixtral/Run_Mixtral.md (2024); recipe:'
    ' tpu-recipes, training/v5p/Mixtral-8X7B-Maxtext',
  ),
  PublishedRun(
    'DeepSeek-V3 671B',
    'gin_configs/runs/deepseek_v3_v5p_1024.gin',
    'v5p:8x8x8',
    152.415,
    0.332,
    False,
    'MaxText: tpu-recipes, training/v5p/DeepSeek3-671B-MaxText (2025), 542.1'
    ' tokens/s a chip',
  ),
)


def measured(
  row: PublishedRun, run: Run, flops_per_token: float
) -> dict[str, float]:
  """The measured speed, and MFU by the authors' count of FLOPs and by ours.

  Args:
    row: a published run.
    run: our run of the same model.
    flops_per_token: training FLOPs per token by our count.
  """
  theirs = flops_per_token
  if row.has_all_scores:
    model = anatomy(run.model)
    # A masked key takes 4 FLOPs per feature in the forward pass and 8 in the
    # backward pass.
    unseen = run.data.sequence_length // 2
    width = model.attention.pair_width * len(model.layers)
    theirs += 3 * 4 * width * unseen
  tokens = row.tflops * 1e12 / theirs
  step_tokens = run.data.batch_size * run.data.sequence_length
  return {
    'tflops_per_chip': row.tflops,
    'mfu_as_published': row.mfu,
    'tokens_per_second_per_chip': tokens,
    'mfu': row.mfu * flops_per_token / theirs,
    'step_tokens': step_tokens,
  }


def compare(row: PublishedRun, run: Run) -> dict[str, Any]:
  """Makes a row of the table: the measurement, and our plan for the run.

  Args:
    row: a published run.
    run: our run of the same model, from `row.gin_file`.
  """
  _logger.info(f'compiling {row.name} for {row.topology}')
  slice_ = topology.parse(row.topology)
  facts = plan.plan_shapes(run)
  made = plan.plan_topology(run, slice_, facts)
  found = measured(row, run, facts['flops_per_token_train'])
  tokens = facts['tokens_per_step'] / slice_.num_chips
  flops = facts['flops_per_token_train'] / slice_.chip.peak['bfloat16']
  found['step_seconds'] = tokens / found['tokens_per_second_per_chip']
  return {
    **dataclasses.asdict(row),
    'chips': slice_.num_chips,
    'peak_bytes': made['peak_bytes'],
    'bound': made['bound'],
    'predicted': predictions(made, tokens, flops),
    'measured': found,
  }


def predictions(
  made: dict[str, Any], tokens: float, peak_seconds: float
) -> dict[str, dict[str, float] | None]:
  """Step time, tokens/s per chip and MFU, by the estimates of a plan.

  Args:
    made: the result of `plan.plan_topology`.
    tokens: number of tokens per step and chip.
    peak_seconds: seconds per token at the published peak FLOP/s of a chip.

  Returns:
    Name of the estimate -> numbers. The compiler's entry is None if the
    compiler estimates no time, as for a TPU7x.
  """
  found = {}
  for name in ('step_seconds_no_overlap', 'step_seconds_full_overlap',
               'compiler_seconds'):  # fmt: skip
    seconds = made[name]
    found[name.removeprefix('step_seconds_')] = seconds and {
      'step_seconds': seconds,
      'tokens_per_second_per_chip': tokens / seconds,
      'mfu': tokens / seconds * peak_seconds,
    }
  return found


def layer_seconds(run: Run, slice_: Slice) -> dict[str, float | None]:
  """Seconds, FLOPs and temporary bytes per layer, from compiled steps.

  Two training steps are compiled, with one period and with two. The difference
  of their costs is the cost of a period's layers, with the updates of their
  parameters. Neither step has a loop over layers, because the compiler counts
  the body of a loop only once. Seconds are None if the compiler estimates no
  time for the chip.
  """
  model = anatomy(run.model)
  blocks = max(1, len(model.period))
  made = []
  for periods in (1, 2):
    unrolled = functools.partial(
      run.model.stack,
      num_layers=len(model.prefix) + periods * blocks,
      unroll=periods,
    )
    changed = dataclasses.replace(run, model=run.model.clone(stack=unrolled))
    made.append(plan.plan_topology(changed, slice_, plan.plan_shapes(changed)))

  def more(key: str) -> float | None:
    if None in (made[0][key], made[1][key]):
      return None
    return (made[1][key] - made[0][key]) / blocks

  return {
    'layers': blocks,
    'compiler_seconds_per_layer': more('compiler_seconds_once'),
    'flops_per_layer': more('executed_flops_per_chip'),
    'temp_bytes_per_layer': more('temp_bytes'),
  }


# Lines of the table: (title, key of the number, format of the number).
_LINES = (
  ('step, s', 'step_seconds', '.2f'),
  ('tokens/s a chip', 'tokens_per_second_per_chip', ',.0f'),
  ('MFU, our counter', 'mfu', '.1%'),
)


def text(rows: list[dict[str, Any]]) -> str:
  """A text table; the columns are the measurement and the predictions."""
  lines = []
  head = ('', 'measured', 'without overlap', 'full overlap', 'compiler')
  for row in rows:
    name = f'{row["name"]}, {row["chips"]} chips of {row["topology"]}'
    columns = [row['measured'], *row['predicted'].values()]
    cells = [
      head,
      *(
        (title, *(format(c[key], form) if c else 'none' for c in columns))
        for title, key, form in _LINES
      ),
    ]
    lines += [name, '']
    lines += [
      '  ' + '  '.join(f'{c:<16}' for c in line).rstrip() for line in cells
    ]
    lines += [
      '',
      f'  published: {row["tflops"]} TFLOP/s a chip, MFU {row["mfu"]:.1%}',
      f'  {row["source"]}',
      f'  ours: {row["gin_file"]}, bound by {row["bound"]}',
      '',
    ]
  lines.append(
    'The predictions are plans of our program for the same model, chips,'
    ' sequence\nlength and batch; the measurements are of MaxText.'
  )
  return '\n'.join(lines)


def layer_text(found: dict[str, float | None]) -> str:
  """The result of `layer_seconds` as a sentence."""
  seconds = found['compiler_seconds_per_layer']
  said = 'no seconds' if seconds is None else f'{seconds:.4f} s a layer'
  return (
    f'{said} by the compiler, {found["flops_per_layer"]:.3g} FLOP,'
    f' {found["temp_bytes_per_layer"] / 1e9:.2f} GB of temporaries'
  )
