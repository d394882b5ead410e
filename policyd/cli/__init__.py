"""The command `policyd`: a module for each group of its commands, loaded when it is called.

main                the groups, by name
serve, demo         the servers
keys, logs, db      what stands in the database; log_filter, refused_report, remove_sample,
                    terminal: of logs
explain, simulate   decisions made once more
options             what several commands take
"""
