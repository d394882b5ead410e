"""The command `policyd`: a module for each group of its commands, loaded when it is called."""
