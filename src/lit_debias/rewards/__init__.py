"""Rewards, the suite that runs them, and the aggregators that turn scores into advantages."""
