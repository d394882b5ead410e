"""What policyd and its gateway tell of themselves, by the libraries that only this package imports.

    settings       the settings that policyd and its gateway have alike
    log            the log of a process; json_log: as JSON; redaction: no secret in it
    access         one line a request
    tracing        spans of requests; trace_context: which trace a request belongs to
    span_sender    sends them to a collector
    catalogue      every metric: its name, type, labels and meaning
    tally          counts and timings, kept in memory between two flushes
    metrics        the metrics of one process
    bounds         bounds of labels, so that no client can make ever more series
    folder         the folder that the processes of one server share
    reading        gauges that are read as Prometheus asks
    exposition     all processes' metrics as one page, for Prometheus

Nothing of it is imported by a server that was not asked for it, but for the log as text.
"""
