"""Training and evaluation with Accelerate."""
