"""API keys: from the gateway's environment or its file; taken out of whatever is written."""
