"""numpy's memory in a worker."""
