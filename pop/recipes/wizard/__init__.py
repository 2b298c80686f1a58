"""`pop new`: from a goal to a persona and a prompt, put together from a library of components (docs/components.md)."""
