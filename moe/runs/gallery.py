"""Pictures for the report of a run: drawn, reconstructed and described ones.

At each evaluation the run draws the same sentences again, with the same seed.
At its end it describes and recognises held-out pictures. They come from the
folder of codes that also holds the image tokenizer.
"""

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from moe.data.store import Store, file_sha256, is_store
from moe.infer.pictures import Seen
from moe.modalities.text import Vocabulary
from moe.objectives.objective import Measure
from moe.parallel import multihost
from moe.runs import build, gallery_file, image_tokenizer, recognition
from moe.runs.drawing import Drawing
from moe.runs.gallery_file import Gallery
from moe.runs.picture_model import PictureModel
from moe.runs.run import Run, TrainedRun
from moe.runs.writing import check_causal
from moe.train.evaluation import Evaluation
from moe.train.program import Program
from moe.train.state import TrainState

_logger = logging.getLogger(__name__)

# Largest numbers of sentences to draw, and of pictures to describe and to
# recognise.
_DRAWN, _DESCRIBED, _RECOGNISED = 8, 12, 200
# If there are more different names than this, they are not used as labels.
_MAX_LABELS = 20
_DRAW = 'draw_'


@dataclasses.dataclass(frozen=True)
class Examples:
  """Held-out pictures of one source.

  Attributes:
    codes: int32 [N, codes].
    pixels: uint8 [N, Y, X, 3]; None if the codes were written without pixels.
    captions: the sentence of each picture.
    names: what each picture shows, for pictures with a name; else ''.
    sentences: the sentences that are drawn.
  """

  codes: np.ndarray
  pixels: np.ndarray | None
  captions: list[str]
  names: list[str]
  sentences: list[str]


@dataclasses.dataclass(frozen=True)
class WithGallery:
  """An evaluation, after which the run makes its gallery.

  Attributes:
    evaluation: the evaluation.
    make: makes the gallery from the training state.
  """

  evaluation: Evaluation
  make: Callable[[TrainState], None]

  @property
  def score(self) -> Measure:
    """The score of the evaluation."""
    return self.evaluation.score

  def metrics(
    self, program: Program, ts: TrainState, is_stopped: Callable[[], bool]
  ) -> dict[str, Any]:
    """The metrics of the evaluation; see `Evaluation`."""
    found = self.evaluation.metrics(program, ts, is_stopped)
    if not is_stopped():
      self.make(ts)
    return found


def with_gallery(
  run: Run,
  program: Program,
  workdir: str,
  vocabulary: str,
  evaluations: dict[str, Evaluation],
) -> dict[str, Evaluation]:
  """The evaluations of a run; the last one then makes the gallery.

  There is no gallery if the run has no image tokenizer, or a router that needs
  later tokens, or if no evaluation `draw_<source>` has its held-out codes
  beside the tokenizer. All processes must call this and draw the pictures.

  Args:
    run: the run.
    program: its program.
    workdir: its directory.
    vocabulary: file of its vocabulary.
    evaluations: its evaluations by the name of the task.
  """
  data = run.data
  if not data.image_tokenizer:
    return evaluations
  root = os.path.dirname(os.path.abspath(data.image_tokenizer))
  names = [t.removeprefix(_DRAW) for t in evaluations if t.startswith(_DRAW)]
  found = {name: os.path.join(root, name, 'validation') for name in names}
  found = {n: path for n, path in found.items() if is_store(pathlib.Path(path))}
  # A process without the pictures could not draw with the others.
  shared = set.intersection(*map(set, multihost.gathered([list(found)])))
  found = {n: path for n, path in found.items() if n in shared}
  try:
    check_causal(run, workdir)
  except ValueError as error:
    _logger.info(f'no gallery: {error}')
    return evaluations
  if not found:
    return evaluations
  trained = TrainedRun(
    build.place_model(run)[0],
    program.mesh,
    None,
    None,
    Vocabulary(vocabulary),
    0,
    workdir,
    run,
    file_sha256(data.image_tokenizer),
  )
  tokenizer = image_tokenizer.load(data.image_tokenizer)
  model = PictureModel(trained, tokenizer)
  examples = {name: _examples(model, path) for name, path in found.items()}

  def make(ts: TrainState) -> None:
    step = int(ts.step)
    now = dataclasses.replace(
      trained, params=ts.params, state=ts.state, step=step
    )
    is_last = step == run.settings.train_steps
    is_first = jax.process_index() == 0
    before = gallery_file.read(workdir) if is_first else {}
    made = {
      name: _made(model.at(now), one, before.get(name), is_last)
      for name, one in examples.items()
    }
    if is_first:
      gallery_file.write(workdir, made)

  *_, last = evaluations
  return {**evaluations, last: WithGallery(evaluations[last], make)}


def _examples(model: PictureModel, directory: str) -> Examples:
  """The first held-out pictures of a store of codes."""
  store = Store(directory)
  records = store.read(np.arange(min(_RECOGNISED, store.lengths.size)))
  facts = [json.loads(record['facts'].tobytes()) for record in records]
  has_pixels = 'pixels' in records[0]
  return Examples(
    np.stack([record['tokens'].astype(np.int32) for record in records]),
    np.stack([r['pixels'] for r in records]) if has_pixels else None,
    [one['caption'] for one in facts],
    [one.get('name', '') for one in facts],
    _sentences(model, [one['caption'] for one in facts]),
  )


def _sentences(model: PictureModel, captions: list[str]) -> list[str]:
  """The first different captions that the model can draw."""
  # A held-out caption may be too long, or have an unknown character.
  return [c for c in dict.fromkeys(captions) if model.can_draw(c)][:_DRAWN]


def _made(
  model: PictureModel, examples: Examples, before: Gallery | None, is_last: bool
) -> Gallery:
  """The gallery after a step; pictures of earlier steps stay."""
  step = model.trained.step
  drawn = {
    s: p for s, p in (before.drawn if before else {}).items() if s < step
  }
  if examples.sentences:
    made = model.draw(examples.sentences, Drawing())
    drawn[step] = np.stack([one.pixels for one in made])
  gallery = Gallery(examples.sentences, drawn)
  if not is_last:
    return gallery
  codes = examples.codes[:_DESCRIBED]
  pixels = examples.pixels
  labels = sorted({*examples.names} - {''})
  is_told = 1 < len(labels) <= _MAX_LABELS
  return dataclasses.replace(
    gallery,
    originals=None if pixels is None else pixels[:_DESCRIBED],
    made=model.tokenizer.decode(codes),
    captions=examples.captions[:_DESCRIBED],
    written=model.write(_seen(model, examples, slice(_DESCRIBED))),
    labels=labels if is_told else (),
    confusion=_confusion(model, examples, labels) if is_told else None,
  )


def _seen(
  model: PictureModel, examples: Examples, rows: list[int] | slice
) -> Seen:
  """Held-out pictures in the form that the model reads."""
  if examples.pixels is None:
    return model.see_codes(examples.codes[rows])
  return model.see(examples.pixels[rows])


def _confusion(
  model: PictureModel, examples: Examples, labels: list[str]
) -> np.ndarray:
  """Number of pictures, int [labels, labels], by their name and the answer."""
  rows = [row for row, name in enumerate(examples.names) if name]
  gains = recognition.gains(
    model,
    _seen(model, examples, rows),
    labels,
    recognition.TEMPLATES,
    recognition.ALPHA,
  )
  counts = np.zeros((len(labels), len(labels)), int)
  truth = [labels.index(examples.names[row]) for row in rows]
  np.add.at(counts, (truth, gains.argmax(axis=1)), 1)
  return counts
