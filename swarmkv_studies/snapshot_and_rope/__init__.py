"""02: why a branch starts right after the document."""
