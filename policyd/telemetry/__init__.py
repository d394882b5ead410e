"""Logs, metrics and traces of policyd and its gateway. Only this package imports their libraries.

    settings       the settings that policyd and its gateway share
    log            the log of a process; json_log: as JSON; redaction: no secret in it
    access         one line for each request
    tracing        spans of requests; trace_context: which trace a request belongs to
    span_sender    sends them to a collector
    catalogue      every metric: its name, type, labels and meaning
    tally          counts and timings, kept in memory between two flushes
    metrics        the metrics of one process
    bounds         bounds of labels, so that no client can make ever more series
    folder         the folder that the processes of one server share
    reading        gauges that are read when Prometheus asks
    exposition     all processes' metrics as one page, for Prometheus

A server imports only what its settings ask for, and the log as text.
"""
