"""A JSON Schema reduced to the strict subset that servers enforce."""
