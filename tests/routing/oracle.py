"""The slow and obvious: plans in Python loops, every expert on every token."""

import numpy as np


def kept_rows(plan, num_experts, C, priority='position'):
  """Bool [G, R]: rows of a plan that find a slot, one after another."""
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


def mixture(x_GMD, plan, kept_GR, expert_fn, num_experts):
  """Every expert on every token in x's dtype, weighted by the rows kept.

  Args:
    x_GMD: tokens.
    plan: who goes where.
    kept_GR: bool, rows that take part.
    expert_fn: (e, x [G, M, D]) -> [G, M, F], of any array library.
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
