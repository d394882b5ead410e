"""The commands' administrator over AdminService: what it calls, in which order and for how long."""

import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode

from policyd import errors
from policyd.cli.remote import OfServer
from policyd.client.admin import TIMEOUT, CallFailed
from policyd.engine.settings import Settings
from policyd.store import LogFilter
from policyd.v1 import admin_pb2 as pb
from tests.support.admin_wire import AdminWire, Ending, error_details

KEY = pb.ApiKey(id="key_1", name="app", revision=1)
GOT = Ending("GetApiKey", pb.GetApiKeyResponse(api_key=KEY))
CHANGED = Ending(
    "UpdateApiKey",
    code=StatusCode.ABORTED,
    details="the key has changed",
    trailers=[error_details(ErrorInfo(reason="ETAG_MISMATCH"))],
)


def settings(_: Settings) -> Settings:
    """The new settings of a key, made of those that it has."""
    return Settings()


def test_a_key_that_others_change() -> None:
    """Settings that are made of a key's own are made anew where another administrator was faster,
    and each update names the state that they were made of.
    """
    wire = AdminWire()
    newer = pb.ApiKey(id="key_1", name="app", revision=2)
    wire.end(
        *(GOT, CHANGED),
        Ending("GetApiKey", pb.GetApiKeyResponse(api_key=newer)),
        Ending("UpdateApiKey", pb.UpdateApiKeyResponse(api_key=newer)),
    )
    assert OfServer(wire.client).update("key_1", {"policies": settings}).name == "app"
    etags = [call.request.api_key.etag for call in wire.calls[1::2]]
    assert [etag.partition("-")[0] for etag in etags] == ["1", "2"]


def test_a_key_that_others_keep_changing() -> None:
    """After five tries the command says why it gives up."""
    wire = AdminWire()
    wire.end(*(GOT, CHANGED) * 5)
    with pytest.raises(errors.EtagMismatch, match="the key has changed"):
        OfServer(wire.client).update("key_1", {"policies": settings})
    assert len(wire.calls) == 10


def test_pages() -> None:
    """All pages of keys are read; of the log, the next ones while the server has found nothing."""
    wire = AdminWire()
    wire.end(
        Ending("ListApiKeys", pb.ListApiKeysResponse(api_keys=[KEY], next_page_token="p2")),
        Ending("ListApiKeys", pb.ListApiKeysResponse(api_keys=[KEY])),
        Ending("ListDecisions", pb.ListDecisionsResponse(next_page_token="p2")),
        Ending("ListDecisions", pb.ListDecisionsResponse(next_page_token="p3")),
        Ending("ListDecisions", pb.ListDecisionsResponse()),
    )
    administrator = OfServer(wire.client)
    assert [key.name for key in administrator.all_keys()] == ["app", "app"]
    assert administrator.page(LogFilter()) == []
    assert len(wire.calls) == 5
    # What looks at many rows has longer.
    assert wire.deadlines == [TIMEOUT] * 2 + [120.0] * 3


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("KEY_NOT_FOUND", errors.KeyNotFound),
        ("UNAUTHENTICATED", CallFailed),
        ("A_LATER_ONE", CallFailed),
        ("", CallFailed),
    ],
)
def test_errors(reason: str, kind: type[Exception]) -> None:
    """An error's reason makes it the one that a command over the database would meet; a reason
    that this version does not know, and a token that is not accepted, are told as they came.
    """
    wire = AdminWire()
    trailers = [error_details(ErrorInfo(reason=reason))]
    wire.end(Ending("GetApiKey", None, StatusCode.UNKNOWN, "what is wrong", trailers))
    with pytest.raises(kind, match="what is wrong") as failed:
        OfServer(wire.client).get("key_1")
    assert type(failed.value) is kind
