"""What commands and server processes share: settings, addresses, processes, files, deadlines."""
