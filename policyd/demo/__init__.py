"""`policyd demo`: policyd, its gateway and an upstream in one process, to try it."""
