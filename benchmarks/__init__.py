"""How fast this package is beside others, on the machine it runs on: `python -m benchmarks`."""
