"""Benchmarks, which `make bench` runs. Each compares figures of one run with each other.

Absolute figures differ from machine to machine and from minute to minute. So the cases of a
comparison take turns in short rounds, and the result is the median over the rounds.

    __main__    the command; rounds: takes turns; processes: the programs under measurement
    evaluate, gateway, envoy, log, core, store, hostile, start    the parts of `make bench`
    console, faults, staleness    further programs: `python -m benchmarks.faults` and so on
"""
