"""Which decisions of the log are wanted: one filter for the console, AdminService and commands.

A condition on a column with an index is followed along that index. The others are judged row by
row, newest first, which log_pages.py bounds.
"""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from policyd.decision_log.record import Ending, Verdict, first_id
from policyd.engine.states import UserState
from policyd.policies import TABLE
from policyd.store.database import ESCAPE, escaped
from policyd.store.decisions import SPARSE, decisions

ERROR = 400
"""The first status that is an error."""
BROKEN = (Ending.UPSTREAM_BROKE, Ending.NO_ANSWER)
"""The endings of requests that the upstream did not answer, or not to the end."""
_IDS = ("id", "request_id", "trace_id", "outcome_openai_id")
"""The columns by whose IDs a request can be found."""


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which decisions are wanted. A condition that is empty, 0, False or None is no condition."""

    key_id: str = ""
    verdict: Verdict | None = None
    flag: str = ""
    operation: str = ""
    end_user: str = ""
    trace_id: str = ""
    since: datetime | None = None
    until: datetime | None = None
    """Exclusive."""
    any_id: str = ""
    """An ID of any kind: the decision's, the caller's for the request, the trace's or OpenAI's."""
    policy: str = ""
    """The name of a policy that the request violates, whether it is enforced or audited."""
    model: str = ""
    """As the request names it."""
    source_ip: str = ""
    http_status: int = 0
    """The status that the client got: that of the denial, or of the upstream's answer."""
    user_contains: str = ""
    """A part of the end user, in any letter case. SQLite knows the case of ASCII letters only: with
    others, the text is found as given, in lower case, in upper case, and with capitals as in
    titles."""
    without_user: bool = False
    """Only requests whose end user is not known."""
    attributed: bool | None = None
    """Whether the request, in scope, carried a valid end-user identifier."""
    failed: bool | None = None
    """Whether the answer was an error, or did not come to its end; False: the request was allowed,
    and no such end was reported."""
    slower_us: int | None = None
    """Only requests that are known to have taken this many microseconds or longer."""

    @property
    def flags(self) -> frozenset[str]:
        """The flags that the wanted decisions must have."""
        found = {self.flag} if self.flag else set()
        if self.policy:
            policy = TABLE.by_name.get(self.policy)
            # A policy that is unknown here may have been known when the log was written.
            found.add(policy.flag if policy else f"policy_{self.policy}")
        return frozenset(found)

    @property
    def is_rare(self) -> bool:
        """Whether an index leads to the few rows that may match."""
        return bool(self.end_user or self.trace_id or self.flags or self.any_id)

    @property
    def needs_search(self) -> bool:
        """Whether finding one match may take looking at many rows."""
        return bool(_judged(self)) and not self.is_rare


def conditions(wanted: LogFilter) -> list[sa.ColumnElement[bool]]:
    """The conditions that the wanted decisions fulfil, except `any_id` and the flags."""
    column = decisions.c
    found: list[sa.ColumnElement[bool]] = []
    for name in ("key_id", "operation", "end_user", "trace_id"):
        if value := getattr(wanted, name).replace("\0", ""):
            found += equal(name, value)
    if wanted.verdict is not None:
        # SQLite would prefer the index of key and verdict, which holds most rows of a key, to that
        # of a trace. `+ 0` keeps it from that.
        verdict = column.verdict + 0 if wanted.is_rare else column.verdict
        found.append(verdict == int(wanted.verdict))
        # Older versions of policyd logged refused keys as denials, though no policy denied them.
        found.append(column.key_id != sa.literal_column("''"))
    if wanted.since is not None:
        found.append(column.id >= first_id(wanted.since))
    if wanted.until is not None:
        found.append(column.id < first_id(wanted.until))
    return found + _judged(wanted)


def ids(any_id: str) -> list[list[sa.ColumnElement[bool]]]:
    """Conditions, one for each column that may hold `any_id`."""
    text = any_id.replace("\0", "")
    return [equal(name, text) for name in _IDS] if any_id else []


def equal(name: str, value: str) -> list[sa.ColumnElement[bool]]:
    """The conditions for a column to have this value, in a form that its index serves."""
    column = decisions.c[name]
    found: list[sa.ColumnElement[bool]] = [column == value]
    if name in SPARSE:
        # This shows SQLite that the partial index holds all wanted rows.
        found.append(column != sa.literal_column("''"))
    return found


def _judged(wanted: LogFilter) -> list[sa.ColumnElement[bool]]:
    """The conditions that no index serves."""
    column = decisions.c
    found: list[sa.ColumnElement[bool]] = []
    for name in ("model", "source_ip"):
        if value := getattr(wanted, name).replace("\0", "\N{REPLACEMENT CHARACTER}"):
            found.append(column[name] == value)
    if status := wanted.http_status:
        answered = sa.and_(column.status == 0, column.outcome_status == status)
        found.append(sa.or_(column.status == status, answered))
    if wanted.user_contains:
        found.append(_contains(wanted.user_contains))
    if wanted.without_user:
        found.append(column.end_user == sa.literal_column("''"))
    if wanted.attributed is not None:
        found += _attributed(wanted.attributed)
    if wanted.failed is not None:
        found += _failed(wanted.failed)
    if wanted.slower_us is not None:
        found.append(column.outcome_duration_us >= wanted.slower_us)
    return found


def _contains(text: str) -> sa.ColumnElement[bool]:
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    forms = {text} if text.isascii() else {text, text.lower(), text.upper(), text.title()}
    patterns = sorted(f"%{escaped(one)}%" for one in forms)
    return sa.or_(*(decisions.c.end_user.ilike(one, escape=ESCAPE) for one in patterns))


def _attributed(is_wanted: bool) -> list[sa.ColumnElement[bool]]:
    column = decisions.c
    valid = column.user_state == int(UserState.VALID)
    return [
        column.key_id != sa.literal_column("''"),
        column.in_scope.is_(sa.true()),
        column.mode.is_not(None),
        valid if is_wanted else sa.not_(valid),
    ]


def _failed(is_wanted: bool) -> list[sa.ColumnElement[bool]]:
    column = decisions.c
    broken = column.outcome_ending.in_([int(one) for one in BROKEN])
    error = sa.and_(column.outcome_ending.is_not(None), column.outcome_status >= ERROR)
    failed = sa.func.coalesce(sa.or_(error, broken), sa.false())
    if is_wanted:
        return [failed, column.key_id != sa.literal_column("''")]
    let_through = column.verdict != int(Verdict.DENIED)
    return [let_through, sa.not_(failed), column.key_id != sa.literal_column("''")]
