"""02b: what is in a snapshot, byte by byte."""
