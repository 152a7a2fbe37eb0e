"""Expressions drawn by the package itself, with exact labels."""
