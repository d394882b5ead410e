"""A POST of JSON, where only the status counts."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping


def post(url: str, body: object, headers: Mapping[str, str]) -> int:
    """The status of the answer, which is read to its end."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.read()
        return error.code
