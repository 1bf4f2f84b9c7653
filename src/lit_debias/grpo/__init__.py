"""The mathematics of GRPO as pure tensor functions: advantages, KL, log-probs, packing and losses."""
