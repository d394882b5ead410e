"""Allowed Operations: the operations that requests may ask for, and no others."""

from policyd.engine.endpoints import ENDPOINTS
from policyd.engine.kinds import Names
from policyd.engine.model import Violation
from policyd.engine.policy import Attributes, Need, Policy


def _decide(attributes: Attributes, allowed: frozenset[str]) -> Violation | None:
    operation = attributes.operation
    if operation in allowed:
        return None
    message = f"Config set to block operation: {operation}"
    return Violation(message, f"the operation {operation} is not one of those allowed")


POLICY = Policy(
    name="allowed_operations",
    order=70,
    title="Allowed Operations",
    hint="Requests must ask for one of these operations.",
    kind=Names("operation", (endpoint.operation for endpoint in ENDPOINTS.values())),
    needs=(Need.OPERATION,),
    subject="",
    decide=_decide,
    tooltip="This request asked for an operation that its key does not allow",
)
