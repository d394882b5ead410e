"""The policies: one file each, from which everything else that differs between them is derived.

A file declares one POLICY (engine/policy.py says what that holds). Every module of this package is
a policy, and is found, not listed: a new file is a new policy, and no other line changes. Their
`order` is that of docs/contract.md, section 7. docs/policies.md says how to write one.
"""

from importlib import import_module
from pkgutil import iter_modules

from policyd.engine import decision
from policyd.engine.model import Decision, DecisionInput
from policyd.engine.policy import Table
from policyd.engine.settings import KeySettings, RouteSettings, Settings

TABLE = Table(
    [import_module(f"{__name__}.{module.name}").POLICY for module in iter_modules(__path__)]
)
"""All policies, in their order."""


def decide(
    given: DecisionInput,
    settings: KeySettings | None,
    defaults: Settings = (),
    route: RouteSettings = decision.NO_ROUTE,
) -> Decision:
    """Decide one request by all policies: see engine/decision.py."""
    return decision.decide(TABLE, given, settings, defaults, route)
