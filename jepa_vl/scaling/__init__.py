"""Scaling-law studies: numpy and scipy alone, so that a table can be fitted anywhere."""
