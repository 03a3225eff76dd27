"""A sequence's KV state on the host: capture and restore, its bytes taken apart, its file, the prefix cache."""
