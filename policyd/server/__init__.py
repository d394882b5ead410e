"""`policyd serve`: it makes a worker, their supervisor and the background worker of the rest."""
