"""How a model is asked for JSON of a schema: found out once per model, and remembered."""
