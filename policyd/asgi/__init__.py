"""What every HTTP server of ours shares: its listener, its bounds on connections, exact replies."""
