"""What every command and server process shares: settings, addresses, processes, files, deadlines."""
