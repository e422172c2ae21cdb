"""The outer border: what clients send and get, as OpenAI and four more documented systems word it."""
