"""Makes the goldens of this folder with transformers.

`python -m tests.interop.make_goldens` needs the extra `interop`. A golden
describes a tiny model of one architecture. It has config.json, the names and
shapes of the arrays that `save_pretrained` writes, and logits and greedy text
for some tokens. It has no weights, since `tiny_models.weights` makes them from
the names of the arrays.
"""

import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers
from safetensors import safe_open

from tests.interop import tiny_models

FOLDER = pathlib.Path(__file__).parent / 'goldens'
TOKENS = np.random.RandomState(3).randint(3, 40, (2, 10))
NUM_GREEDY = 8


def read_names(folder: pathlib.Path) -> dict[str, list[int]]:
  """Name -> shape of each array of a saved model."""
  with safe_open(folder / 'model.safetensors', 'np') as f:
    return {name: f.get_slice(name).get_shape() for name in sorted(f.keys())}


def answer(model) -> tuple[np.ndarray, np.ndarray]:
  """(logits of `TOKENS`, the tokens that greedy decoding adds to row 0)."""
  with torch.no_grad():
    tokens = torch.tensor(TOKENS)
    logits = model(tokens).logits.numpy()
    greedy = tokens[:1]
    for _ in range(NUM_GREEDY):
      chosen = model(greedy).logits[:, -1].argmax(-1, keepdim=True)
      greedy = torch.cat([greedy, chosen], dim=1)
  return logits, greedy.numpy()[0, TOKENS.shape[1] :]


def make(name: str) -> None:
  """Writes one golden, with shapes for both layouts of the experts."""
  config = tiny_models.config(name)
  model = transformers.AutoModelForCausalLM.from_config(
    transformers.AutoConfig.for_model(**config), dtype=torch.float32
  )
  shapes, whole = [], None
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    for is_original in (True, False):
      model.save_pretrained(folder, save_original_format=is_original)
      shapes.append(read_names(folder))
    tiny_models.write(folder, shapes[0])
    model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32, attn_implementation='eager'
    ).eval()
    whole = json.loads((folder / 'config.json').read_text())
  logits, greedy = answer(model)
  whole.pop('transformers_version')
  np.savez_compressed(
    FOLDER / f'{name}.npz',
    config=json.dumps(whole),
    shapes=json.dumps(shapes[0]),
    fused_shapes=json.dumps(shapes[1]),
    tokens=TOKENS,
    logits=logits.astype(np.float32),
    greedy=greedy,
  )
  print(name, logits.std(), len(shapes[0]), len(shapes[1]))


if __name__ == '__main__':
  FOLDER.mkdir(exist_ok=True)
  for golden in tiny_models.CONFIGS:
    make(golden)
