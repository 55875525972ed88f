"""Data: numpy only. Workers import this package, so nothing here may import jax."""
