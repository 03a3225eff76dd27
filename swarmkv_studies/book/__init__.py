"""What the book shows beside the notebooks: the figures with their captions, and the explorer that needs no kernel."""
