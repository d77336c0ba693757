"""All routers, by their names in configurations, such as `gates.TopK`."""

from moe.routing.group_choice import Base, ExpertChoice, Sinkhorn
from moe.routing.loss_free import Quantile, Sigmoid
from moe.routing.token_choice import GShard, Hash, NoisyTopK, Switch, TopK
from moe.routing.wrappers import ModalityGrouped, NullExperts

__all__ = [
  'Base',
  'ExpertChoice',
  'GShard',
  'Hash',
  'ModalityGrouped',
  'NoisyTopK',
  'NullExperts',
  'Quantile',
  'Sigmoid',
  'Sinkhorn',
  'Switch',
  'TopK',
]
