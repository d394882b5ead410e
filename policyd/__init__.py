"""policyd decides whether a request to an LLM API may go upstream."""
