"""From prompts to groups of completions."""
