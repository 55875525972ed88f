"""Evaluators on frozen features; the loop, or a command, decides when they run."""
