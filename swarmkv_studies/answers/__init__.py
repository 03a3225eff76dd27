"""03: are the answers the same, and right?"""
