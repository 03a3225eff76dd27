"""08: ship the cache, or compute it again?"""
