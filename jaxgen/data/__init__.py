"""Sequences, genomes, tasks and batches: numpy and grain, and tensorflow_datasets for records alone; no model code."""
