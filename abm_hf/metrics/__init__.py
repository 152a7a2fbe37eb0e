"""Metrics for handwritten-mathematics recognition."""
