"""A trial of a request: decided now by the settings in the database, without a server.

`policyd explain` and the console's page "Try a request" use it. Nothing is logged.
"""

from enum import Enum
from typing import NamedTuple

from policyd.descriptor.evaluate_request import read
from policyd.descriptor.headers import NO_HEADERS
from policyd.engine.model import Decision, Explanation, Result
from policyd.engine.places import IDENTIFIERS
from policyd.engine.settings import KeySettings, Settings
from policyd.engine.states import Credential, Mode
from policyd.policies import TABLE, decide
from policyd.v1 import policy_pb2 as pb


class Finding(Enum):
    """What a policy that is set found of a request."""

    KEPT = "kept"
    VIOLATED = "violated"
    FAILED = "failed"
    OFF = "off"
    OUT_OF_SCOPE = "out_of_scope"


class Trial(NamedTuple):
    """A decision, and the settings of the key by which it was made."""

    decision: Decision
    settings: KeySettings | None
    """None: no key in force was given."""

    def finding(self, result: Result) -> Finding:
        """What the policy of one of the decision's results found of the request."""
        return finding(result, self.decision.explanation)


def finding(result: Result, why: Explanation) -> Finding:
    """What a policy found of a request that was decided as `why` says."""
    policy = TABLE.by_name.get(result.policy)
    if result.has_failed:
        return Finding.FAILED
    if result.violation:
        return Finding.VIOLATED
    if result.mode is Mode.OFF:
        return Finding.OFF
    if not why.in_scope or (policy and not policy.applies_to(why.operation)):
        return Finding.OUT_OF_SCOPE
    return Finding.KEPT


def try_request(
    message: pb.EvaluateRequest,
    settings: KeySettings | None,
    defaults: Settings,
    trusted: frozenset[str] = NO_HEADERS,
) -> Trial:
    """Decide the request that `message` describes by a key's settings, with `defaults` as the
    server's. `trusted` are the headers, in lower case, that may name the end user.

    `settings` count only where the message names one key. Raises InvalidDescriptor.
    """
    accept = settings.accept if settings else IDENTIFIERS
    decision_input = read(message, accept=accept, trusted=trusted).decision_input
    if decision_input.credential is not Credential.GIVEN:
        settings = None
    return Trial(decide(decision_input, settings, defaults), settings)
