"""The names of all logical axes; most are the names in t5x."""

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
