"""Recognition: pictures or ink in, LaTeX with its probabilities out."""
