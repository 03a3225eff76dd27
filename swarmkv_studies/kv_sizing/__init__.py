"""01: how big a snapshot is."""
