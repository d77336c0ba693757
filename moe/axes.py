"""Every logical axis name, once; t5x's words."""

BATCH = 'batch'
LENGTH = 'length'
EMBED = 'embed'
MLP = 'mlp'
HEADS = 'heads'
KV = 'kv'
LATENT = 'latent'
VOCAB = 'vocab'
LAYERS = 'layers'
EXPERT = 'expert'
EXPERT_MLP = 'expert_mlp'
