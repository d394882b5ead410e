"""Generated from protos/policyd/v1 by `make protos`. Never edited by hand."""
