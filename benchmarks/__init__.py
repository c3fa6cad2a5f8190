"""Speed of jaxgen against peers, all in one run: `python -m benchmarks --help`, or `make bench`."""
