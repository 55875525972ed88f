"""Training: the state, the step, the checkpoints and the loop around them."""
