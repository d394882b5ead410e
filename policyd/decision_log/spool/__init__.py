"""The spool: a folder of append-only files, where log entries are safe until the store has them.

    {process}-{number}.jsonl   a segment: one line of JSON for each entry, as ../record.py
                               and ../refused_key.py define them
    {process}-{number}.lost    how many entries the process has lost, as 20 digits
    shipper.lock               locked by the one process that ships
    database                   the identity of the database that the entries belong to
    gateway                    marks the folder of a gateway that decides by itself, and is locked
                               by it
    identity                   the identity of this folder, under which positions are kept

A process is named by random digits and numbers its files, so no name is ever used again.

The life of a segment is a state machine, and a lock is what moves it on. Each step is one system
call, so a kill at any moment leaves the file in one of these states:

    being written   its process holds a lock on it and appends whole batches of lines
    left            no process holds the lock: the process has ended or begun another segment
    finished        left, and the shipper has read it to its end
    deleted         the store has said again that it has all of it

Why nothing is lost, and nothing is there more than once:

- Only a process that holds the lock writes, and a writer makes sure, once it has the lock, that the
  file still has its name: the shipper may have taken a new file for one that is left. So what is
  left is complete, and can be read to its end.
- write() appends a whole batch or takes it back. Half a line at the end, as a kill may leave it,
  belongs to an answer that never left.
- How far a segment was shipped is committed in the store, with what was shipped. A shipper that
  starts anew goes on from there, and not from anything noted here: see store/positions.py.
- A segment is deleted only if the store, asked again, has all of it, and its position is forgotten
  only after the deletion is durable.

What an answer promises depends on --spool-sync. In each case the entry survives the worker, kill -9
included, because the kernel has it; syncing.py says what survives the machine:

    never      a power cut may take what the kernel has not written yet, 30 s or so
    interval   a power cut may take the last second or so
    always     a power cut takes nothing that was answered, unless --log-error drop allowed it

Which file for what: folder (making and marking the folder, locks), writer, reader, syncing, spares
(descriptors in reserve), problems (errors for the operator), system (the system calls, for tests).
"""

from policyd.command.log_settings import SYNCS, Sync
from policyd.decision_log.spool.folder import (
    check_gateways,
    check_own,
    claim,
    held,
    known_database,
    make,
    prepare,
)
from policyd.decision_log.spool.reader import Chunk, SpoolReader, left
from policyd.decision_log.spool.writer import SpoolWriter

__all__ = [
    "SYNCS",
    "Chunk",
    "SpoolReader",
    "SpoolWriter",
    "Sync",
    "check_gateways",
    "check_own",
    "claim",
    "held",
    "known_database",
    "left",
    "make",
    "prepare",
]
