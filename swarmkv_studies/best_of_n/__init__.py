"""06b: many answers to one question."""
