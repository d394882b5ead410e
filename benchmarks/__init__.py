"""What `make bench` runs. It compares: every figure stands beside its counterpart of the same run.

Absolute figures differ from machine to machine and from minute to minute, so cases that are
compared take turns in short rounds, and what is told is the median over the rounds.
"""
