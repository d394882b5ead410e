"""Logged decisions as AdminService gives them."""

from typing import Any

import pytest

from policyd.errors import InvalidArgument
from policyd.services import log_messages
from policyd.store import LogFilter
from policyd.v1 import admin_pb2
from policyd.v1 import policy_pb2 as pb
from tests.support.records import record

JUDGED = (
    '[["max_tokens",3,"500",1,3,"Config set to max tokens of: 500; request was: 600"],'
    '["enforce_user_ids",2,"",2,0,null],["max_poems",3,"3",2,0,"","a newer version"]]'
)


def test_what_policies_found() -> None:
    """A decision has the result of each policy, and the numbers that they judged."""
    message = log_messages.message(record(results=JUDGED, token_limit=600, prompt_chars=12))
    assert (message.token_limit, message.prompt_characters) == (600, 12)
    first, second, third = message.results
    assert first == pb.PolicyResult(
        policy="max_tokens",
        mode=pb.ENFORCE_MODE_ENFORCE,
        value="500",
        source=pb.SETTING_SOURCE_HEADER,
        ignored=pb.OVERRIDE_IGNORED_INVALID,
        violated=True,
        message="Config set to max tokens of: 500; request was: 600",
    )
    assert not second.violated
    # One that could not judge.
    assert third.violated
    assert third.message == ""


def test_a_record_of_one_policy() -> None:
    """Where only the original policy was set, its result is made of the record's other fields."""
    message = log_messages.message(record())
    assert [one.policy for one in message.results] == ["enforce_user_ids"]
    assert message.results[0].mode == pb.ENFORCE_MODE_ENFORCE
    assert not message.HasField("token_limit")
    assert not message.HasField("prompt_characters")


def test_numbers_that_are_none() -> None:
    """A limit that is absent or not valid is no number."""
    for kept in (-1, -2):
        message = log_messages.message(record(token_limit=kept, prompt_chars=kept))
        assert not message.HasField("token_limit")
        assert not message.HasField("prompt_characters")


def test_further_filters() -> None:
    """ListDecisions takes the filters of the console and the command."""
    given: dict[str, Any] = {"model": "gpt-4o", "source_ip": "192.0.2.7", "http_status": 404}
    named = given | {"user_contains": "da", "without_user": True}
    request = admin_pb2.ListDecisionsRequest(**named)
    assert log_messages.log_filter(request) == LogFilter(**named)
    for status in (-1, 20, 600):
        with pytest.raises(InvalidArgument, match="http_status"):
            log_messages.log_filter(admin_pb2.ListDecisionsRequest(http_status=status))
