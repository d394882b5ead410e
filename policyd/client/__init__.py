"""Gateways ask policyd with it: PolicyClient with asyncio, SyncPolicyClient for threads."""

from policyd.client.aio import PolicyClient, tls_credentials
from policyd.client.fallback import OnError
from policyd.client.sync import SyncPolicyClient
from policyd.errors import NoDecision

__all__ = ["NoDecision", "OnError", "PolicyClient", "SyncPolicyClient", "tls_credentials"]
