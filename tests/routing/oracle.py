"""A slow reference for the experts of a layer, without any dispatch.

Loops in Python find the rows that are kept. Every expert computes all tokens.
"""

import math

import numpy as np


def kept_rows(plan, num_experts, C, priority='position'):
  """Bool [G, R]: whether each row gets a slot, found by a loop over rows."""
  token, expert, weight, valid, rows_GMA = (
    np.asarray(a)
    for a in (
      plan.token_GR,
      plan.expert_GR,
      plan.weight_GR,
      plan.valid_GR,
      plan.rows_GMA,
    )
  )
  G, R = expert.shape
  M, A = rows_GMA.shape[1:]
  k = A - plan.num_spare
  kept = np.zeros((G, R), bool)
  for g in range(G):
    free = [C] * num_experts
    spare = {r for m in range(M) for r in rows_GMA[g, m, k:] if r >= 0}
    first = [r for r in range(R) if valid[g, r] and r not in spare]
    if priority == 'probability':
      first.sort(key=lambda r: (-weight[g, r], r))
    wanted = np.zeros(M, int)
    held = np.zeros(M, int)
    for r in first:
      wanted[token[g, r]] += 1
    rounds = [first]
    for a in range(k, A):
      rounds.append(sorted(r for r in rows_GMA[g, :, a] if r >= 0))
    for turn in rounds:
      lacks = held < wanted
      for r in turn:
        m, e = token[g, r], expert[g, r]
        if valid[g, r] and free[e] and (turn is first or lacks[m]):
          kept[g, r] = True
          free[e] -= 1
          held[m] += 1
  return kept


def sent_rows(counts, buffer_rows):
  """Number of rows that are sent, as lists [sender][receiver].

  `counts` has the number of rows that should be sent, in the same form. If the
  buffer of a receiver is too small, all senders send it the same share of their
  rows.
  """
  n = len(counts)
  sent = [[int(count) for count in row] for row in counts]
  for d in range(n):
    total = sum(counts[s][d] for s in range(n))
    if total > buffer_rows:
      share = np.float32(max(buffer_rows - n, 0)) / np.float32(total)
      for s in range(n):
        sent[s][d] = math.floor(np.float32(counts[s][d]) * share)
  return sent


def _visits(plan, tokens, num_local, n):
  """For each receiver, the tokens that a sender wants to send, in order."""
  visits = [[] for _ in range(n)]
  for a in range(plan.rows_GMA.shape[-1]):
    for g, m in tokens:
      r = plan.rows_GMA[g, m, a]
      d = plan.expert_GR[g, r] // num_local
      if plan.valid_GR[g, r] and (g, m) not in visits[d]:
        visits[d].append((g, m))
  return visits


def pooled_rows(plan, num_experts, num_devices, limits, priority='position'):
  """Bool [G, R]: whether `exchange.Ragged` keeps each row.

  Args:
    plan: NumPy arrays, without spare choices.
    num_experts: E, divided over the devices.
    num_devices: n; each device has the same number of groups.
    limits: largest numbers for a device: (tokens that it receives, slots of
      each of its experts or None, rows of all its experts together or None).
    priority: see `dispatch.Sorted`.
  """
  (G, M, A), n = plan.rows_GMA.shape, num_devices
  num_local = num_experts // n
  most_visits, slots, most_rows = limits
  visits = []
  for s in range(n):
    groups = range(s * G // n, (s + 1) * G // n)
    tokens = [(g, m) for g in groups for m in range(M)]
    visits.append(_visits(plan, tokens, num_local, n))
  sent = sent_rows([[len(v) for v in row] for row in visits], most_visits)
  kept = np.zeros(plan.expert_GR.shape, bool)
  for d in range(n):
    runs = [visits[s][d][: sent[s][d]] for s in range(n)]
    # The first token of each sender comes first, then the second token of each
    # sender, and so on.
    arrived = [run[i] for i in range(G * M) for run in runs if i < len(run)]
    rows = [(g, plan.rows_GMA[g, m, a]) for a in range(A) for g, m in arrived]
    mine = [
      row
      for row in rows
      if plan.valid_GR[row] and plan.expert_GR[row] // num_local == d
    ]
    if priority == 'probability':
      mine.sort(key=lambda row: -plan.weight_GR[row])
    mine.sort(key=lambda row: plan.expert_GR[row])
    used = [0] * num_experts
    for row in mine:
      e = plan.expert_GR[row]
      kept[row] = slots is None or used[e] < slots
      used[e] += 1
      if most_rows is not None and sum(used) > most_rows:
        kept[row] = False
  return kept


def mixture(x_GMD, plan, kept_GR, expert_fn, num_experts):
  """Sums the experts' outputs for each token, times the weights of kept rows.

  Args:
    x_GMD: tokens.
    plan: the experts of each token.
    kept_GR: bool, rows that are not dropped.
    expert_fn: (e, x [G, M, D]) -> [G, M, F], for NumPy or JAX arrays.
    num_experts: E.
  """
  y = 0.0
  token_GR, expert_GR = np.asarray(plan.token_GR), np.asarray(plan.expert_GR)
  M = x_GMD.shape[1]
  for e in range(num_experts):
    mine_GR = kept_GR & (expert_GR == e)
    here_GRM = (token_GR[..., None] == np.arange(M)) & mine_GR[..., None]
    weight_GM = (plan.weight_GR[..., None] * here_GRM.astype('f4')).sum(axis=1)
    y = y + weight_GM[..., None] * expert_fn(e, x_GMD)
  return y
