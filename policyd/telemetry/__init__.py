"""What operators see of a running server: its log, its traces and its metrics.

Each is off, and its library not imported, until an operator asks for it; until then the log is
text.
"""
