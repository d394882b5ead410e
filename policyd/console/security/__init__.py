"""Who may use the console: passwords, sessions, attempts, and where a request comes from."""
