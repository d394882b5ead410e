"""API keys: their format, their bearer tokens, and all of their settings in memory."""
