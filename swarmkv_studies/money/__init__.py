"""09: what a prefill costs."""
