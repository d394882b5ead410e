"""The decision log from the worker to the store: records, the spool, export, prices."""
