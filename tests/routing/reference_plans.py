"""The choices of routers, found without JAX.

The function of a router takes the tokens of one group as lists of numbers, and
returns {(token, expert): weight} of the choices.
"""

import math

import numpy as np


def best(scores, count):
  """Indices of the largest scores; of equal scores the first is taken."""
  return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]


def softmax(logits):
  total = sum(math.exp(a - max(logits)) for a in logits)
  return [math.exp(a - max(logits)) / total for a in logits]


def sigmoid(logit):
  return 1 / (1 + math.exp(-logit))


def top_k(logits, valid, k, renormalize=True):
  choices = {}
  for m in range(len(logits)):
    probs = softmax(logits[m])
    chosen = best(logits[m], k)
    total = sum(probs[e] for e in chosen) if renormalize else 1.0
    for e in chosen:
      if valid[m]:
        choices[m, e] = probs[e] / total
  return choices


def top_k_in_groups(logits, valid, k, options):
  """DeepSeek-V2's router; `options` are num_groups, top_groups and scaling."""
  num_groups, top_groups, scaling = options
  choices = {}
  for m in range(len(logits)):
    probs = softmax(logits[m])
    size = len(probs) // num_groups
    worth = [max(probs[n * size : (n + 1) * size]) for n in range(num_groups)]
    groups = best(worth, top_groups)
    is_open = [e // size in groups for e in range(len(probs))]
    limited = [p if o else 0.0 for p, o in zip(probs, is_open, strict=True)]
    for e in best(limited, k):
      if valid[m]:
        choices[m, e] = scaling * probs[e]
  return choices


def gshard(logits, valid, draws):
  """GShard's choices; `draws`: a number for each token, None in evaluation."""
  choices = top_k(logits, valid, 2)
  for m in range(len(logits)):
    second = best(logits[m], 2)[1]
    if valid[m] and draws is not None and 2 * choices[m, second] <= draws[m]:
      del choices[m, second]
  return choices


def sigmoid_top_k(logits, valid, k, bias, options):
  """DeepSeek-V3's router; `options` are num_groups, top_groups and scaling."""
  num_groups, top_groups, scaling = options
  choices = {}
  for m in range(len(logits)):
    scores = [sigmoid(a) for a in logits[m]]
    biased = [s + b for s, b in zip(scores, bias, strict=True)]
    size = len(biased) // num_groups
    in_group = lambda n, a=biased, size=size: a[n * size : (n + 1) * size]
    worth = [sum(sorted(in_group(n))[-2:]) for n in range(num_groups)]
    for n in range(num_groups):
      if n not in best(worth, top_groups):
        biased[n * size : (n + 1) * size] = [-math.inf] * size
    chosen = best(biased, k)
    total = sum(scores[e] for e in chosen)
    for e in chosen:
      if valid[m]:
        choices[m, e] = scaling * scores[e] / total
  return choices


def quantile_top_k(logits, valid, k, bias):
  choices = {}
  for m in range(len(logits)):
    chosen = best([a + b for a, b in zip(logits[m], bias, strict=True)], k)
    total = sum(sigmoid(logits[m][e]) for e in chosen)
    for e in chosen:
      if valid[m]:
        choices[m, e] = sigmoid(logits[m][e]) / total
  return choices


def quantile_prices(logits, valid, k, bias):
  """Price of each expert in one group, found by sorting all tokens."""
  tokens = [m for m in range(len(logits)) if valid[m]]
  E = len(bias)
  thresholds = {
    m: sorted((logits[m][e] + bias[e] for e in range(E)), reverse=True)[k]
    for m in tokens
  }
  prices = []
  for e in range(E):
    excess = sorted(
      (logits[m][e] - thresholds[m] for m in tokens), reverse=True
    )
    prices.append(excess[len(tokens) * k // E])
  return prices


def expert_choice(logits, valid, k, max_per_token=0):
  M, E = len(logits), len(logits[0])
  C = max(1, min(M, math.ceil(M * k / E)))
  probs = [softmax(row) for row in logits]
  choices = {}
  for e in range(E):
    column = [probs[m][e] if valid[m] else -1.0 for m in range(M)]
    for m in best(column, C):
      if valid[m]:
        choices[m, e] = probs[m][e]
  if max_per_token:
    for m in range(M):
      mine = [choices.get((m, e), -1.0) for e in range(E)]
      for e in range(E):
        if e not in best(mine, max_per_token):
          choices.pop((m, e), None)
  return choices


def sinkhorn_top_k(logits, valid, k, num_iterations):
  tokens = [m for m in range(len(logits)) if valid[m]]
  a_ME = np.exp(np.asarray([logits[m] for m in tokens], np.float64))
  for _ in range(num_iterations):
    a_ME = a_ME / a_ME.sum(axis=1, keepdims=True)
    a_ME = a_ME / a_ME.sum(axis=0, keepdims=True) * len(tokens) / a_ME.shape[1]
  return {
    (m, e): softmax(logits[m])[e]
    for m, row in zip(tokens, a_ME.tolist(), strict=True)
    for e in best(row, k)
  }


def hashed(token_ids, valid, k, num_experts):
  choices = {}
  for m, token_id in enumerate(token_ids):
    upper = (token_id * 2654435769) % 2**32 // 2**16
    first = upper * num_experts // 2**16
    for a in range(k):
      if valid[m]:
        choices[m, (first + a * (num_experts // k)) % num_experts] = 1 / k
  return choices


def without_added(choices, num_experts, num_null):
  """Returns (choices of the E experts, token -> weight of copy experts)."""
  kept, own = {}, {}
  for (m, e), weight in choices.items():
    if e < num_experts:
      kept[m, e] = weight
    elif e >= num_experts + num_null:
      own[m] = own.get(m, 0.0) + weight
  return kept, own


def masked(logits, modality, reserved):
  """Returns logits with -500 for experts of other modalities."""
  owner = [i for i, count in enumerate(reserved) for _ in range(count)]
  rows = []
  for m, row in enumerate(logits):
    row = list(row)
    for e, i in enumerate(owner):
      if modality[m] < len(reserved) and modality[m] != i:
        row[e] = -500.0
    rows.append(row)
  return rows
