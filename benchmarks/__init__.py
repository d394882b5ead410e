"""Benchmarks, which `make bench` runs. Each compares figures of one run with each other.

Absolute figures differ from machine to machine and from minute to minute. So the cases of a
comparison take turns in short rounds, and the result is the median over the rounds.

    __main__    the command; parts: what it runs, and for how long; part: one, in its own process
    gateway, evaluate, envoy, bodies, keys, shipping, core, log, watched, start, hostile, store
                the parts
    deployment, peers, upstream, processes    the programs under measurement, and their CPU time
    load, open_loop    what sends: a compiled client, or a constant rate
    traffic, body_kinds    what is sent
    rounds, findings    cases that take turns, and what was found
    report, svg, pages, check    REPORT.md, its charts, what pages say, what has moved
    console, faults, staleness    further programs: `python -m benchmarks.faults` and so on
    rig, striking, sqlite_faults, postgresql_faults    the deployment of faults, and what hits it
"""
