"""00: what one prefill and many agents look like; the race."""
