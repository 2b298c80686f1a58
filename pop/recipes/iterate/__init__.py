"""``pop iterate``: work split into iterations and given to agents by role. A workflow in YAML becomes prompts, criteria and a pipeline."""
