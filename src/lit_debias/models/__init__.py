"""Base models: where they come from, what they must be, and how they are read right."""
