"""05: against what people run today."""
