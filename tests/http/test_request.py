"""A request as the HTTP check reads it."""

from typing import Any

import pytest

from policyd.descriptor.body_memory import Bodies
from policyd.errors import BodiesFull
from policyd.http.request import Request

MEMORY = 1_000_000
SCOPE: dict[str, Any] = {
    "method": "POST",
    "raw_path": b"/v1/evaluate",
    "query_string": b"",
    "has_fragment": False,
    "is_spare": False,
    "scheme": "http",
    "headers": [],
}


@pytest.mark.parametrize("size", [90_000, 200_000])
async def test_a_body_without_room(size: int) -> None:
    """A client that sends more than any body may have learns that, and is not asked to try
    again."""
    bodies = Bodies(MEMORY)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(size), "more_body": False}

    request = Request(SCOPE, receive, patience=60)
    with bodies.hold() as others, bodies.hold() as held:
        others.grow(MEMORY - 80_000)
        if size > 100_000:
            assert await request.body(100_000, held) is None
        else:
            with pytest.raises(BodiesFull):
                await request.body(100_000, held)
