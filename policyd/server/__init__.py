"""`policyd serve`: what makes a worker, its supervisor and the background worker out of the rest."""
