"""The cost of ppvae beside its rivals: one command, one table. See ``docs/benchmarks.md``; ``python -m benchmarks --help``."""
