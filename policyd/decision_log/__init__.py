"""The decision log between the decision and the store.

An entry meets these files in this order:

    record         a decision, and the outcome of its request, as the log has them; inputs, results:
                   what a record keeps of a decision's input, and of each policy's result
    refused_key    a request without a key in force: no decision, but counted
    refused_tally  counts those in memory that does not grow with them
    writer         DecisionLog: what a worker hands its entries to before it answers; process_log:
                   the log of one process, by its settings
    spool/         the files on the worker's disk, where entries are safe until they are shipped
    shipper        carries entries from the spool to their destination
    pricing        what a request cost, worked out as its outcome is shipped
    export         decisions as CSV and JSON Lines

store/destination.py is where they arrive, or client/policyd_destination.py where a gateway decides
by itself; store/log.py says what holds there.
"""
