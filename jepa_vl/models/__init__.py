"""Networks as Linen modules: plain parameters and einsum. The only room that imports flax."""
