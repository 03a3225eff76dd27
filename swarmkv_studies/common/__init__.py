"""What several studies need: rounds, the cost model, style."""
