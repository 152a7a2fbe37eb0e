"""Data sets: a file for each source, shards, recombination, batching, collator, card."""
