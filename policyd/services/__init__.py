"""The gRPC services: message -> model -> one call -> message."""
