"""03: how much faster, and the article's table."""
