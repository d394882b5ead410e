"""`policyd logs remove-sample`: removes the made-up week of `policyd demo`."""

import click

from policyd.cli import options


@click.command("remove-sample")
@options.common
def remove_sample(database_url: str, as_json: bool) -> None:
    """Remove the made-up week of `policyd demo` from the log, and from all counts.

    Requests that were really sent stay.
    """
    deleted = 0
    with options.opened(database_url) as store:
        while some := store.log.remove_sample():
            deleted += some
    if as_json:
        options.print_json({"deleted": deleted})
    else:
        click.echo(f"{deleted} made-up requests were removed.")
