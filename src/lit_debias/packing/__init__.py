"""Groups packed behind their prompts, attention over them, and the log-probs of their tokens."""
