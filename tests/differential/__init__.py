"""What policyd reads, against what many other readers read: `make differential`."""
