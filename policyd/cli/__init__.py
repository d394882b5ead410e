"""The command `policyd`: a module for each group of its commands, loaded when it is called.

main                the groups, by name
serve, demo         the servers
keys, logs, db      what is in the database; log_filter, log_status, refused_report,
                    remove_sample, terminal: parts of logs; key_settings, expiry: of keys
explain, simulate   what would be decided now, or by other settings; verdicts, setting_words:
                    how they print it
audit, config       what administrators did; what a server would find wrong
doctor, health      what is wrong with a deployment; whether the server on this machine is ready
policies            which policies there are
apply               keys and defaults as a file declares them: declaration, yaml_nodes (reading it),
                    declaration_schema, declaration_writing, applied (what changes), secret_files
administration      what keys, logs, audit and apply do, over the database; remote, remote_log: over
                    AdminService; place: which of the two
options             what several commands take; times: moments and lengths of time
"""
