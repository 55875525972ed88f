"""jepa_vl: vision-language joint-embedding predictive architectures in JAX.

Importing this package imports nothing heavy: data workers and ``--help`` must start without jax.
"""

__version__ = "0.1.0"
