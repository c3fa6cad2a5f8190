"""Numeric fixtures made by running the original implementations, and what jaxgen computes for each of their families."""
