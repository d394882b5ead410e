"""`policyd serve`: the composition root, where processes are made of the other packages.

    supervisor    holds the ports; starts, watches and replaces the other processes
    worker        the process of one worker
    server        Server: what one worker consists of, and how it starts and ends
    background    the background worker: ships the log, retires it, and serves the console

What a worker is made of:

    preparation   what it needs on its own disk, and the background worker's process
    opening       the database: brought to its form, and known to be the one that the spool is for
    following     how it gets the settings of API keys: from the database, or the snapshot
    presence      its signs of life in the store, which also measure its clock (worker_clock)
    admin_token   the token of AdminService
    http_check    what answers at --http
    readiness     whether requests should be sent to it, and what its operator should know
    health        the health that it reports
    telemetry     its metrics (worker_metrics), access lines and traces
    local_decisions  what it offers gateways that decide by themselves

The page of all metrics: supervisor_metrics, with those of the background worker
(background_metrics, shipped_metrics). Without a server: config_checks, for `policyd config check`,
and doctor, for `policyd doctor`.

The background worker: decision_log/shipper.py carries entries from the spool to the store, and
retirement.py deletes old ones there.
"""
