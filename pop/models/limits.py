"""Requests and tokens per minute, and calls at once: per model and per provider, shared by all workers."""
