"""The policy: a frozen base, its adapters, and its log-probs."""
