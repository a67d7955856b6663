"""One rival a file. Each has a function for every task that it takes part in: ``task(job) -> Prepared``."""
