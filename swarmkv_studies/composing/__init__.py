"""Composing: agents with prompts of their own before one document: how good, what is computed, how early."""
