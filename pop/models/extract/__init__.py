"""The embedded extractive engine: it finds, counts and copies; it does not reason, rewrite or judge (docs/models.md)."""
