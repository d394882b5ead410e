"""The HTTP gateway of policyd: asks it about every request, then forwards or refuses."""
