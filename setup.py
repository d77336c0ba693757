"""Installs wudao-moe; launch/requirements.txt pins every package it needs."""

import pathlib

import setuptools

DATA = [
  'opencc>=1.4',
  'seqio>=0.0.20',
  # The two must be of one build: a mismatch is an undefined symbol at import.
  'tensorflow==2.21.0',
  'tensorflow-text==2.21.1',
  'tensorflow-datasets>=4.9.10',
  # TensorFlow Datasets needs it for its own sets, but does not require it.
  'importlib-resources>=7.1',
]
TPU = 'libtpu>=0.0.52; sys_platform == "linux" and platform_machine == "x86_64"'
# Grouped matrix products on NVIDIA GPUs. Python 3.11 gets 0.0.12, the last
# version for it, which has Triton kernels; newer versions have Mosaic kernels.
TOKAMAX = 'tokamax>=0.0.12'
# What nightly tests of weights of others and of buckets run against. It is
# outside of the lock: CI compares with goldens that were made with it.
INTEROP = [
  # The harness reads models of transformers with it.
  'accelerate>=1.10',
  # Nightly tests save to gs:// on this server.
  'gcp-storage-emulator>=2026.7',
  'lm_eval>=0.4.13',
  'safetensors>=0.8',
  'torch>=2.9',
  'transformers>=5.20',
]
TEST = [
  'chex>=0.1.92',
  # A second reader of structures, which tests compare with the first.
  'gemmi>=0.7.5',
  'pypinyin>=0.55',
  'pytest>=9',
  'pytest-xdist>=3.8',
  'ruff==0.17.6',
  # A test compiles for GPUs on a machine without one; newer versions cannot.
  TOKAMAX + '; python_version < "3.12"',
  # Makes the lock file, and installs from it.
  'uv==0.13.9',
]

setuptools.setup(
  name='wudao-moe',
  version='0.1.0',
  description='Sparse mixture-of-experts research on JAX and TPU.',
  long_description=pathlib.Path(__file__)
  .with_name('README.md')
  .read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(include=['moe*', 'tasks*', 'launch*']),
  package_data={
    'tasks': ['corpora/*.jsonl', 'corpora/*.md'],
    'launch': ['*.sh', '*.sbatch', '*.yaml', '*.txt', '*.md', 'Dockerfile*'],
    'moe': ['report/*.html', 'evaluate/*.txt'],
  },
  install_requires=[
    'absl-py>=2.3',
    'array-record>=0.8.3',
    # A compressor beside the loss per character; Python has it from 3.14 on.
    'backports.zstd>=1; python_version < "3.14"',
    # SSIM in the report on an image tokenizer.
    'dm-pix>=0.4.4',
    # Reads structures of proteins, and knows the atoms of the residues.
    'biotite>=1.6',
    'flax>=0.12.8,<0.13',
    'gcsfs>=2026.1',
    'gin-config==0.5.0',
    'jax>=0.10.2,<0.13',
    'jinja2>=3.1',
    'matplotlib>=3.10',
    # Letters of the structure around each residue, for tasks of proteins.
    'mini3di>=0.2.1',
    'numpy>=2.2',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.4',
    'pillow>=12',
    # Draws structures that can be turned, on the page of folded chains.
    'plotly>=6',
    'rich>=14',
    'sentencepiece>=0.2.1',
    'tensorboardX>=2.6.4',
  ],
  extras_require={
    'data': DATA,
    'interop': INTEROP,
    'test': TEST,
    # The TPU compiler; launch.plan runs it on machines without a TPU.
    'tpu': [TPU],
    'cuda': ['jax[cuda13]>=0.10.2,<0.13', TOKAMAX],
  },
)
