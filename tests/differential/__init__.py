"""What policyd reads, compared with what many other readers read: `make differential`."""
