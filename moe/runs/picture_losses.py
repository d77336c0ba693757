"""How well a model predicts the codes of pictures."""

from collections.abc import Sequence

import jax
import numpy as np

from moe.evaluate import likelihood
from moe.runs.picture_model import PictureModel


def code_nats(
  model: PictureModel,
  codes: np.ndarray,
  sentences: Sequence[str],
  is_hidden: bool,
) -> np.ndarray:
  """Mean nats per code of each picture after its sentence, [N].

  Args:
    model: the model.
    codes: int32 [N, codes].
    sentences: the sentence of each picture.
    is_hidden: whether masks replace the sentences.
  """
  trained, size = model.trained, model.canvas.num_codes
  documents = []
  for row, sentence in zip(codes, sentences, strict=True):
    prompt = trained.vocabulary.encode(sentence + '\n')
    first, total = len(prompt), len(prompt) + size
    places = model.canvas.extras_of(np.array([first]), total)
    if is_hidden:
      prompt = [model.canvas.mask] * first
    is_code = np.arange(total) >= first
    documents.append(
      likelihood.Document(
        np.array([*prompt, *(row + model.canvas.begin)], np.int32),
        size,
        size,
        is_code,
        modality=is_code.astype(np.int32),
        extras={name: values[0] for name, values in places.items()},
      )
    )
  length = max(len(document.tokens) for document in documents)
  parts = trained.row_parts
  context = likelihood.Context(length, length, -(-32 // parts) * parts)
  with jax.set_mesh(trained.mesh):
    nats = likelihood.score_documents(
      trained.functional, trained.params, trained.state, documents, context
    )
  return nats / size
