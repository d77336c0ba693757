"""A trained run that draws pictures from sentences and describes pictures."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from moe.checkpoint import restore
from moe.evaluate import captions
from moe.infer import decode, forms, kv_cache, pictures
from moe.infer.pictures import Seen
from moe.infer.prompts import RowPrompt, bucket
from moe.infer.sampling import Sampling
from moe.modalities import image
from moe.modalities.ids import PATCHES
from moe.parallel import multihost
from moe.runs import image_tokenizer
from moe.runs.drawing import Drawing, Drawn
from moe.runs.image_tokenizer import ImageTokenizer
from moe.runs.run import IMAGE_TOKENIZER, TrainedRun
from moe.runs.writing import check_causal
from moe.types import Array

# Largest number of rows in a batch, which bounds the memory.
_MAX_ROWS = 256


@dataclasses.dataclass(frozen=True)
class PictureModel:
  """A trained run with the tokenizer of its pictures.

  Attributes:
    trained: the run.
    tokenizer: the frozen tokenizer of its image codes.
    programs: compiled programs by what they do; they are made when needed.
  """

  trained: TrainedRun
  tokenizer: ImageTokenizer
  programs: dict = dataclasses.field(default_factory=dict, repr=False)

  @functools.cached_property
  def canvas(self) -> pictures.Canvas:
    """Ids and grid of the codes of a picture in a document."""
    ids = self.trained.ids
    return pictures.Canvas(
      ids.begin('image'),
      self.tokenizer.grid,
      ids.mask,
      self.trained.functional.extras,
    )

  @property
  def sha256(self) -> str:
    """Hash of all parameters."""
    digest = hashlib.sha256()
    for name, array in sorted(restore.leaves(self.trained.params).items()):
      digest.update(name.encode())
      digest.update(np.ascontiguousarray(jax.device_get(array)).tobytes())
    return digest.hexdigest()

  @property
  def facts(self) -> dict[str, str]:
    """Facts about the model, for people."""
    step = str(self.trained.step)
    return {'step': step, 'model': self.sha256, **self.tokenizer.facts}

  def at(self, trained: TrainedRun) -> 'PictureModel':
    """The same model after other training steps; it shares the programs."""
    return dataclasses.replace(self, trained=trained)

  def encode(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
    """Codes int32 [N, codes] of pictures of the tokenizer's size."""
    return self.tokenizer.encode(np.stack(pixels))

  @property
  def _reads_patches(self) -> bool:
    return any(extra.name == PATCHES for extra in self.canvas.extras)

  def see(self, pixels: Sequence[np.ndarray]) -> Seen:
    """Pictures of the tokenizer's size, in the form that the model reads."""
    if not self._reads_patches:
      return Seen(self.encode(pixels) + self.canvas.begin)
    patches = image.patches_of(np.stack(pixels), self.canvas.grid)
    masks = np.full(patches.shape[:2], self.canvas.mask, np.int32)
    return Seen(masks, {PATCHES: patches})

  def see_codes(self, codes: np.ndarray) -> Seen:
    """Pictures, given as codes int32 [N, codes], in the form of `see`."""
    if self._reads_patches:
      return self.see(self.tokenizer.decode(codes))
    return Seen(np.asarray(codes, np.int32) + self.canvas.begin)

  def upper_half(self, pixels: np.ndarray, num: int) -> np.ndarray:
    """Codes of a picture's upper half, repeated `num` times, [num, codes]."""
    rows, columns = self.canvas.grid
    codes = self.encode([pixels])[:, : rows // 2 * columns]
    return np.repeat(codes, num, axis=0)

  def prompt(self, sentence: str) -> list[int]:
    """Ids of the sentence that a picture is drawn for, and of a line break.

    Raises:
      ValueError: if the sentence is empty, has several lines, is too long, or
        has characters that the model does not know.
    """
    vocabulary = self.trained.vocabulary
    if not sentence.strip() or '\n' in sentence:
      raise ValueError(
        f'The sentence must be one line of text, got {sentence!r}.'
      )
    self.check_known(sentence, 'The sentence')
    found = vocabulary.encode(sentence + '\n')
    length = self.trained.run.data.sequence_length
    room = length - self.canvas.num_codes - 1
    if len(found) > room:
      raise ValueError(
        f'The sentence must have at most {room} tokens, so that a picture fits'
        f' behind it, got {len(found)}: shorten it.'
      )
    return found

  def unknown(self, text: str) -> list[str]:
    """The characters of a text that the vocabulary has no piece for."""
    vocabulary = self.trained.vocabulary
    found = {
      character: None
      for character in text
      for i in vocabulary.encode(character)
      if i == vocabulary.unk or vocabulary.is_byte(i)
    }
    return list(found)

  def check_known(self, text: str, what: str) -> None:
    """Raises ValueError if a text has characters that have no piece."""
    unknown = self.unknown(text)
    if unknown:
      raise ValueError(
        f'{what} must have characters that the model was trained on, got'
        f' {" ".join(unknown)}: use other words.'
      )

  def can_draw(self, sentence: str) -> bool:
    """Whether `prompt` takes the sentence."""
    try:
      self.prompt(sentence)
    except ValueError:
      return False
    return True

  def caption(self, sentence: str) -> list[int]:
    """Ids of a sentence about a picture, with the end mark."""
    vocabulary = self.trained.vocabulary
    return [*vocabulary.encode(sentence), vocabulary.eos]

  def draw(
    self, sentences: Sequence[str], options: Drawing, given: np.ndarray = None
  ) -> list[Drawn]:
    """Draws one picture for each sentence.

    Args:
      sentences: what the pictures show.
      options: how pictures are drawn.
      given: first codes of each picture, int32 [pictures, n]; None for none.
    """
    wanted = [text for text in sentences for _ in range(options.rerank)]
    if given is not None:
      given = np.repeat(given, options.rerank, axis=0)
    codes = self.draw_codes(wanted, options, given)
    nats = self.caption_losses(codes, wanted)
    best = nats.reshape(-1, options.rerank).argmin(axis=1)
    best += np.arange(len(sentences)) * options.rerank
    made = self.tokenizer.decode(codes[best])
    return [
      Drawn(pixels, codes[i], float(nats[i]))
      for pixels, i in zip(made, best, strict=True)
    ]

  def draw_codes(
    self,
    sentences: Sequence[str],
    options: Drawing,
    given: np.ndarray | None = None,
  ) -> np.ndarray:
    """Draws one picture for each sentence, as codes int32 [pictures, codes]."""
    artist = functools.partial(
      self._artist(options.sampling), self.trained.params, self.trained.state
    )
    prompts = [self.prompt(sentence) for sentence in sentences]
    # All chunks but the last have the same size, so they share a program.
    num_chunks = -(-len(prompts) // (_MAX_ROWS // 2))
    made, chunk = [], -(-len(prompts) // num_chunks)
    for first in range(0, len(prompts), chunk):
      part = slice(first, first + chunk)
      with jax.set_mesh(self.trained.mesh):
        codes = pictures.draw(
          artist,
          self.canvas,
          prompts[part],
          options.guidance,
          options.seed,
          None if given is None else given[part],
          self.trained.row_parts,
          first,
        )
      made.append(codes)
    return np.concatenate(made)

  def caption_losses(
    self, codes: np.ndarray, sentences: Sequence[str]
  ) -> np.ndarray:
    """Nats per token of each picture's sentence, [N]; the CapLoss of CogView.

    Args:
      codes: int32 [N, codes].
      sentences: the sentence of each picture.
    """
    losses, seen = np.zeros(len(codes)), self.see_codes(codes)
    for sentence in dict.fromkeys(sentences):
      rows = [i for i, text in enumerate(sentences) if text == sentence]
      ids = self.caption(sentence)
      losses[rows] = self.nats(seen.rows(rows), [ids])[:, 0] / len(ids)
    return losses

  def nats(
    self, seen: Seen | None, captions_K: Sequence[Sequence[int]]
  ) -> np.ndarray:
    """Nats of each of K captions about each of N pictures, [N, K].

    Args:
      seen: the pictures. None for a hidden picture; then N = 1.
      captions_K: ids of each caption, with the end mark.
    """
    if seen is None:
      seen = Seen(
        np.full((1, self.canvas.num_codes), self.canvas.mask, np.int32)
      )
    count = len(seen.tokens)
    ids, lengths = captions.padded(captions_K)
    chunk = max(1, _MAX_ROWS // len(ids))
    chunk = min(chunk, bucket(count, 1))
    found = []
    for first in range(0, count, chunk):
      rows = np.arange(first, min(first + chunk, count))
      whole = seen.rows(np.resize(rows, chunk))
      with jax.set_mesh(self.trained.mesh):
        nats = self._listener(
          self.trained.params, self.trained.state, whole, ids, lengths
        )
      found.append(multihost.whole(nats)[: len(rows)])
    return np.concatenate(found).astype(np.float64)

  def describe(
    self, seen: Seen, num: int, sampling: Sampling, seed: int
  ) -> list[list[tuple[str, float]]]:
    """Different captions of each picture, the likeliest first.

    Args:
      seen: the pictures.
      num: number of captions that are drawn for each picture; equal ones are
        listed once.
      sampling: how captions are drawn; the greedy caption is added to them.
      seed: seed of the draws.

    Returns:
      For each picture, a list of (caption, nats per token).
    """
    drawn = self._write(seen, num, sampling, seed)
    best = self._write(seen, 1, Sampling(0.0), seed)
    found = []
    for row, texts in enumerate(drawn):
      known = [t for t in dict.fromkeys([*best[row], *texts]) if t.strip()]
      if not known:
        found.append([])
        continue
      ids = [self.caption(text) for text in known]
      nats = self.nats(seen.rows([row]), ids)[0]
      losses = [n / len(i) for n, i in zip(nats, ids, strict=True)]
      found.append(sorted(zip(known, losses, strict=True), key=lambda p: p[1]))
    return found

  def write(self, seen: Seen) -> list[str]:
    """The caption of each picture by greedy decoding."""
    return [texts[0] for texts in self._write(seen, 1, Sampling(0.0), 0)]

  def _write(
    self, seen: Seen, num: int, sampling: Sampling, seed: int
  ) -> list[list[str]]:
    trained = self.trained
    vocabulary, size = trained.vocabulary, self.canvas.num_codes
    table = forms.free_table(forms.pieces_of(vocabulary), vocabulary.eos)
    places = self.canvas.extras_of(np.zeros(1, int), size)
    extras = {name: values[0] for name, values in places.items()}
    prompts = []
    for row, tokens in enumerate(seen.tokens):
      own = {name: values[row] for name, values in seen.extras.items()}
      prompt = RowPrompt(tokens.tolist(), table, [1] * size, extras | own)
      prompts += [prompt] * num
    limit = trained.run.data.sequence_length - size - 1
    texts = []
    for first in range(0, len(prompts), _MAX_ROWS):
      with jax.set_mesh(trained.mesh):
        written = decode.generate(
          self._writer(sampling),
          trained.params,
          trained.state,
          prompts[first : first + _MAX_ROWS],
          limit,
          seed,
          trained.row_parts,
          first,
        )
      texts += [vocabulary.decode(ids) for ids in written]
    return [texts[i : i + num] for i in range(0, len(texts), num)]

  @property
  def _listener(self) -> Callable:
    return self._kept(
      ('listener',),
      lambda: captions.build_listener(
        self.trained.functional, self.canvas, self.trained.ids.modality
      ),
    )

  def _writer(self, sampling: Sampling) -> Callable:
    modality, mask = self.trained.ids.modality, self.canvas.mask

    def of_described(ids: Array) -> Array:
      # In a description, a mask hides a code of the picture.
      return jnp.where(ids == mask, pictures.IMAGE, modality(ids))

    return self._kept(
      ('writer', sampling),
      lambda: decode.build_writer(
        self.trained.functional,
        sampling,
        self.trained.vocabulary.eos,
        self._cache_shardings,
        of_described,
        'text',
      ),
    )

  def _artist(self, sampling: Sampling) -> Callable:
    return self._kept(
      ('artist', sampling),
      lambda: pictures.build_artist(
        self.trained.functional,
        sampling,
        self.canvas,
        self.trained.ids.modality,
        self._cache_shardings,
      ),
    )

  @property
  def _cache_shardings(self):
    functional = self.trained.functional
    layers = functional.cache_shapes(self.trained.row_parts, 1)
    return kv_cache.shardings(layers, functional.layout, self.trained.mesh)

  def _kept(self, key: tuple, make: Callable) -> Callable:
    """The program of a key; `make` makes it when it is first needed."""
    if key not in self.programs:
      self.programs[key] = make()
    return self.programs[key]


def of_run(trained: TrainedRun) -> PictureModel:
  """The picture model of a trained run.

  Raises:
    ValueError: if the run has no pictures, or cannot write token by token.
  """
  if not trained.image_tokenizer or trained.functional.ids is None:
    raise ValueError(
      f'{trained.workdir} must be a run that draws and describes pictures, got'
      ' one of text alone: train one with'
      ' --gin_file=runs/pictures_cpu.gin.'
    )
  check_causal(trained.run, trained.workdir)
  tokenizer = image_tokenizer.load(
    os.path.join(trained.workdir, IMAGE_TOKENIZER)
  )
  return PictureModel(trained, tokenizer)
