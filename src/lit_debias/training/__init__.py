"""What trains: GRPO, its baselines, and what stands around a run."""
