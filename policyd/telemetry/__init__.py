"""What policyd and its gateway tell of themselves, by the libraries that only this package imports.

    catalogue     every metric: its name, type, labels and meaning
    tally         counts and timings, kept in memory between two flushes
    metrics       the metrics of one process
    bounds        bounds of labels, so that no client can make ever more series
    folder        the folder that the processes of one server share
    exposition    all processes' metrics as one page, for Prometheus

Nothing of it is imported by a server that was not asked for it.
"""
