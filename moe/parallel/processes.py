"""How a process joins the others of a program."""

import os


def initialize() -> None:
  """Joins the other processes, if there are any; call it first, and once.

  TPU pods, SLURM and GKE are recognised by JAX. Elsewhere set NUM_PROCESSES,
  PROCESS_ID and JAX_COORDINATOR_ADDRESS (host:port of process 0).

  Raises:
    ValueError: if only some of the three are set.
  """
  names = ('NUM_PROCESSES', 'PROCESS_ID', 'JAX_COORDINATOR_ADDRESS')
  given = [n for n in names if n in os.environ]
  if given and len(given) < len(names):
    raise ValueError(
      f'{", ".join(names)} must be set together, got {", ".join(given)} alone:'
      ' set all or none.'
    )
  # Here, since verbs import this file, and --help must answer at once.
  import jax

  if given:
    jax.distributed.initialize(
      os.environ['JAX_COORDINATOR_ADDRESS'],
      int(os.environ['NUM_PROCESSES']),
      int(os.environ['PROCESS_ID']),
    )
  elif any(n in os.environ for n in ('TPU_WORKER_HOSTNAMES', 'SLURM_JOB_ID')):
    jax.distributed.initialize()
