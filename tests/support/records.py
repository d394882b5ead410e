"""Entries of the decision log, for tests."""

import itertools
from datetime import UTC, datetime
from typing import Any

from policyd.decision_log.record import Outcome, Record, Verdict, first_id
from policyd.engine.states import Ignored, Mode, Source, UserState

_count = itertools.count()
START = datetime(2026, 11, 1, 12, tzinfo=UTC)


def utc_now() -> datetime:
    """This moment."""
    return datetime.now(UTC)


def decision_id(at: datetime = START) -> str:
    """A new ID, of a decision made at `at`; later ones are larger."""
    return f"{first_id(at)}{'ab' * 6}{next(_count):08x}"


def record(at: datetime = START, **given: Any) -> Record:
    """A decision that allowed a request with a user; `given` replaces fields."""
    usual: dict[str, Any] = {
        "id": decision_id(at),
        "verdict": Verdict.ALLOWED,
        "status": 0,
        "key_id": "key_1",
        "operation": "chat_completion",
        "mode": Mode.ENFORCE,
        "source": Source.KEY,
        "ignored": Ignored.NOT_IGNORED,
        "in_scope": True,
        "user_state": UserState.VALID,
        "identifier": "user",
        "summary": "Allowed: the field user names an end user.",
        "flags": "",
        "revision": 3,
        "body_user": UserState.VALID,
        "body_safety_identifier": UserState.ABSENT,
        "overrides": "",
        "end_user": "ada",
        "model": "gpt-4o-mini",
    }
    return Record(**usual | given)


def denied(at: datetime = START, **given: Any) -> Record:
    """A decision that denied a request without a user."""
    usual: dict[str, Any] = {
        "verdict": Verdict.DENIED,
        "status": 422,
        "user_state": UserState.ABSENT,
        "body_user": UserState.ABSENT,
        "flags": "policy_enforce_user_ids",
        "end_user": "",
        "summary": "Denied: the field user is absent.",
    }
    return record(at, **usual | given)


def outcome(decision: Record, **given: Any) -> Outcome:
    """The outcome of `decision`'s request."""
    usual: dict[str, Any] = {
        "ending": 1,
        "status": 200,
        "input_tokens": 10,
        "output_tokens": 5,
        "cost_nano": 4500,
    }
    return Outcome(decision.id, **usual | given)
