"""policyd over HTTP: the check that proxies ask, the descriptor in JSON, and AuthZEN."""
