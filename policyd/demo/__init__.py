"""`policyd demo`: policyd, its gateway and an upstream started together, to try policyd.

run         starts all of it, and says how to use it
presence    how commands find a running demo, and a second demo the first
sample      a week of made-up requests for the console
upstream    a small OpenAI-compatible upstream, for tests and benchmarks too
received    a request as the upstream receives it
replies     its answers; streams: the same, word by word
metrics     the page of metrics of the demo
"""
