"""Models: the catalogue, the providers, the store of answers, the gateway and its client."""
