"""The options that choose decisions of the log."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from policyd.cli.options import Moment, option
from policyd.decision_log.record import Verdict
from policyd.policies import TABLE
from policyd.store import LogFilter

_VERDICTS = {verdict.name.lower(): verdict for verdict in Verdict}
_FILTERS = [
    option(
        "--key-id",
        default="",
        metavar="KEY",
        help="Of requests with this API key: its ID, or its name.",
    ),
    option("--decision", type=click.Choice(list(_VERDICTS)), help="With this result."),
    option("--flag", default="", help=f"With this flag, such as {TABLE.original.flag}."),
    # No option(): in the environment and the file, this name is that of a key's setting.
    click.option(
        "--policy",
        type=click.Choice(list(TABLE.by_name)),
        help="Of requests that violate this policy, whether it is enforced or audited.",
    ),
    option(
        "--operation", default="", help="Of this operation, such as chat_completion or embedding."
    ),
    option("--user", default="", help="Of requests that name this end user."),
    option(
        "--user-contains",
        default="",
        metavar="TEXT",
        help="Of requests whose end user contains this text, in any letter case.",
    ),
    option("--without-user", is_flag=True, help="Of requests without a known end user."),
    option("--model", default="", help="Of requests that name this model."),
    option("--source-ip", default="", metavar="IP", help="Of requests from this IP address."),
    option(
        "--http-status",
        type=click.IntRange(100, 599),
        metavar="STATUS",
        help="Answered with this status, by policyd's denial or by the upstream.",
    ),
    option("--trace-id", default="", help="Of requests of this trace."),
    option(
        "--any-id",
        default="",
        metavar="ID",
        help="With this ID: a decision's, a trace's, OpenAI's, or the caller's own of a request.",
    ),
    option(
        "--since",
        type=Moment(),
        help="Decided then or later: 2026-11-25T09:30Z, or 24h for the last day.",
    ),
    option("--until", type=Moment(), help="Decided before then."),
]


def with_filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose decisions; see log_filter()."""
    for add in reversed(_FILTERS):
        command = add(command)
    return command


def log_filter(
    key_id: str,
    decision: str | None,
    flag: str,
    policy: str | None,
    operation: str,
    user: str,
    user_contains: str,
    without_user: bool,
    model: str,
    source_ip: str,
    http_status: int | None,
    trace_id: str,
    any_id: str,
    since: datetime | None,
    until: datetime | None,
) -> LogFilter:
    """What the options of with_filters() ask for."""
    verdict = _VERDICTS[decision] if decision else None
    return LogFilter(
        key_id=key_id,
        verdict=verdict,
        flag=flag,
        policy=policy or "",
        operation=operation,
        end_user=user,
        user_contains=user_contains,
        without_user=without_user,
        model=model,
        source_ip=source_ip,
        http_status=http_status or 0,
        trace_id=trace_id,
        any_id=any_id,
        since=since,
        until=until,
    )
