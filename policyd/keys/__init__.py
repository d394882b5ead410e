"""API keys, and the settings of all of them in memory: what a decision looks up.

api_key             the format of a key, and its digest, by which it is stored and looked up
settings            changes of a key's settings, checked
defaults            the server's settings that are in force for keys that set none
audit               what administrators do, as the audit trail keeps it
key_table           KeyTable: every key's settings in memory, at one revision
stored_key_table    StoredKeyTable: the same, following the store
settings_by_digest  the settings themselves, small and in parts
changed_keys        which of them changed
snapshot            the file with the last known settings, to decide by while the database is away
snapshot_format     its bytes, and what tells a whole file from a damaged one
snapshot_keeper     keeps the file up to date with the settings
tokens              bearer tokens of callers and administrators, in files
"""
