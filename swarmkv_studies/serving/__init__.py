"""11: agents that speak the OpenAI API, unchanged: what they send, and what the lab's server computes of it."""
