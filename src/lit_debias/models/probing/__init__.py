"""Which way to log-probs is right for a model, found by asking it."""
