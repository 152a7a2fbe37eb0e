"""Ink, labels, data sets and batches."""
