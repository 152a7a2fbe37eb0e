"""The commands of `abm-hf` that take more than a few lines, one module each."""
