"""The gateway's own answers, in OpenAI's shape of errors (docs/contract.md, sections 4 and 5)."""

from policyd.asgi.reply import AGAIN, HEADERS, Reply, error

PREFLIGHT = Reply(200, (("Access-Control-Allow-Headers", "*, Authorization"), *HEADERS[1:]), b"{}")
BAD_PATH = error(
    400,
    "invalid_request",
    "The request names no path. Send a path that begins with /, such as /v1/chat/completions",
)
OUTSIDE = error(
    400,
    "invalid_request",
    "The request's path leads out of the upstream API's own path. Send a path without dot segments",
)
BAD_HEADER = error(
    400,
    "invalid_request",
    "A header's value is not UTF-8, so it cannot be passed on as it came. Encode it in UTF-8",
)
BAD_LENGTH = error(
    400,
    "invalid_request",
    "The request body is not as long as its Content-Length header says. Send a Content-Length that "
    "is the body's length in bytes",
)
BODIES_FULL = error(
    503,
    "server_error",
    "The gateway holds as many request bodies as it may. Try again; if it lasts, ask its operator "
    "to raise --body-memory",
    retry_after=AGAIN,
)
STOPPING = error(
    503,
    "server_error",
    "The gateway is stopping. Try again; another gateway may answer",
    retry_after=AGAIN,
)
FAULT = error(
    500,
    "server_error",
    "The gateway failed on this request. Its log says how; ask its operator to report it",
)
UNREACHABLE = error(
    502,
    "server_error",
    "The upstream API cannot be reached. Try again; if it lasts, ask the gateway's operator to "
    "check the upstream's address and the network",
)
DOWN = error(
    502,
    "server_error",
    "Connecting to the upstream API failed several times in a row, so this request was not sent. "
    "Try again later; if it lasts, ask the gateway's operator to check the upstream's address and "
    "the network",
)
BROKE_OFF = error(
    502,
    "server_error",
    "The upstream API closed the connection before it answered, or answered with something other "
    "than HTTP. Try again; if it lasts, the gateway's log says more",
)
SLOW_TO_CONNECT = error(
    504,
    "server_error",
    "The upstream API took too long to accept a connection. Try again; if it lasts, ask the "
    "gateway's operator to check the upstream and --connect-timeout",
)
SLOW_TO_TAKE = error(
    504,
    "server_error",
    "The upstream API stopped receiving the request before all of it was sent. Try again; if it "
    "lasts, ask the gateway's operator to check the upstream and --send-timeout",
)
SLOW_TO_ANSWER = error(
    504,
    "server_error",
    "The upstream API took too long to begin its answer. Try again, or ask the gateway's operator "
    "to raise --first-byte-timeout",
)
