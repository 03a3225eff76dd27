"""The figures with their captions, and the explorer that needs no kernel."""
