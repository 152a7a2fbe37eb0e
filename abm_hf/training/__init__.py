"""Training with Accelerate: `arguments` says what can be chosen, `loop.train` does it."""
