"""Sequences, genomes, tasks and batches: numpy, grain and pyfaidx only; no model code."""
