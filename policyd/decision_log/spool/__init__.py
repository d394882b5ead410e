"""The spool: a folder of append-only files, where log entries are safe until the store has them.

One worker writes one file at a time and holds a lock on it. What one write() has taken survives the
worker's end, kill -9 included, as the kernel has it then; whether it survives the machine's is a
setting: see syncing.py. How far each file has been shipped stands in the store, beside what was
shipped. The shipper deletes a file that the store has all of and no process locks any more.

    {process}-{number}.jsonl   a line of JSON for each entry
    {process}.lost             how many entries the process could not keep
    shipper.lock               held by the one process that ships
    database                   which database the entries belong to
    identity                   what tells this folder from every other one

A process is named by random digits and counts its files, so no name comes twice.
"""

from policyd.decision_log.spool.folder import known_database, make, prepare
from policyd.decision_log.spool.reader import Chunk, SpoolReader, left
from policyd.decision_log.spool.syncing import SYNCS, Sync
from policyd.decision_log.spool.writer import SpoolWriter

__all__ = [
    "SYNCS",
    "Chunk",
    "SpoolReader",
    "SpoolWriter",
    "Sync",
    "known_database",
    "left",
    "make",
    "prepare",
]
