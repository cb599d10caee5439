"""numpy's scalars to bytes and back."""
