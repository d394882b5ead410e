"""The client SDK: PolicyClient for asyncio, SyncPolicyClient for threads. Gateways ask by these.

An evaluation goes through these files:

    aio         PolicyClient: the interface
    sync        SyncPolicyClient: the same for threads, on an event loop in a thread of its own
    batches     evaluations of one turn of the event loop travel in one call
    peers       the policyds that may be asked: which connection is tried, and which one next
    targets     their addresses, and opening, which makes connections to them
    transport   what a connection does, whichever protocol it speaks:
    connection       ... gRPC
    http_connection  ... HTTP, on the connections of http_pool, whose errors connect_errors reads;
                     http_leftovers: no leftover response may answer another request
    silence     calls wait, and no answer comes; then recovery looks for the peer until it is back
    statuses    what a status means: an outage, or a policyd that would not decide
    fallback    the answer in place of a decision, by `on_error`
    reporter    outcomes of requests, reported in batches
    request_outcome  ... as a gateway records one

Beside it: forking (what becomes of clients when a process forks) and admin (AdminClient, by which
programs of administrators call AdminService).

A program that decides by itself, by policyd's settings, imports LocalPolicyClient from
policyd.client.local, and with it all that deciding needs:

    local               LocalPolicyClient: the interface
    key_follower        streams of settings: opened, given up, opened again elsewhere
    key_stream          one stream: what comes into force, and how old it is
    key_pieces          its messages -> settings
    local_outcomes      outcomes of requests, logged in batches
    decision_carrier    the spool, carried by one process at a time
    policyd_destination ... to policyd, over a stream
    local_look          one look at a policyd as a client follows it, for `doctor` and the start
    local_telemetry     the metrics and spans of these decisions
    stream_call         one call of these streams, which ends with policyd's own status
"""

from grpc import ChannelCredentials

from policyd.client.aio import PolicyClient, tls_credentials
from policyd.client.fallback import OnError
from policyd.client.sync import SyncPolicyClient
from policyd.errors import NoDecision

__all__ = [
    "ChannelCredentials",
    "NoDecision",
    "OnError",
    "PolicyClient",
    "SyncPolicyClient",
    "tls_credentials",
]
