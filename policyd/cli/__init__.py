"""The command `policyd`: a module for each group of its commands, loaded when it is called.

main                the groups, by name
serve, demo         the servers
keys, logs, db      what stands in the database; log_filter, refused_report, remove_sample,
                    terminal: of logs
explain, simulate   decisions made once more
audit, config       what administrators did; what a server would find wrong
apply               keys and defaults as a file declares them: declaration, yaml_nodes (reading it),
                    declaration_schema, declaration_writing, applied (what changes), secret_files
administration      what keys, logs, audit and apply do, over the database; remote, remote_log: over
                    AdminService; place: which of both
options             what several commands take; times: moments and lengths of time; expiry: of keys
"""
