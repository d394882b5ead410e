"""`policyd apply` and `policyd export`: keys and defaults as a file declares them."""

import sys
from pathlib import Path
from typing import Any

import click

from policyd.cli import applied, declaration, options
from policyd.cli.administration import Administrator
from policyd.cli.declaration import Declaration
from policyd.cli.declaration_schema import schema
from policyd.cli.declaration_writing import write
from policyd.cli.place import Place, administered
from policyd.cli.secret_files import SecretFiles
from policyd.cli.yaml_nodes import MAX_BYTES
from policyd.errors import PolicydError
from policyd.keys.audit import Action
from policyd.keys.settings import Applied, DeclaredKey

_WOULD_CHANGE = 2
_HINT = (
    "# yaml-language-server: $schema=policyd.schema.json\n"
    "# The schema: policyd apply --schema >policyd.schema.json\n"
)


def _print_schema(context: click.Context, _: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        options.print_json(schema())
        context.exit()


@click.command()
@click.option(
    "--file",
    "-f",
    "source",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="The declaration, in YAML or JSON; - for stdin.",
)
@click.option("--prune", is_flag=True, help="Revoke keys that are not declared.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--yes", is_flag=True, help="Change it without asking.")
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON Schema of declarations, for editors, and exit.",
)
@options.as_json
@administered
def apply(place: Place, source: Path, as_json: bool, **flags: bool) -> None:
    """Make API keys, by their names, and the server's defaults what a file declares.

    All of it is in force at one revision, or nothing is changed. The changes are shown first; on a
    terminal you are asked, elsewhere --yes is needed. A secret is made for each new key, unless its
    digest is declared: it is printed once, or written to the secret_file of the key.

    Exits with 0 if all is as declared, and 1 if the file or a change is wrong. With --dry-run, 2
    says that something would change.
    """
    try:
        wanted = _read(source)
        with place.opened() as administrator:
            _apply(administrator, wanted, as_json=as_json, **flags)
    except PolicydError as error:
        # Not 2, which says that something would change.
        raise click.ClickException(str(error)) from error


def _read(source: Path) -> Declaration:
    if str(source) == "-":
        content = sys.stdin.buffer.read(MAX_BYTES + 1)
        return declaration.read(content, "stdin", Path())
    try:
        with source.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise click.ClickException(f"{source} cannot be read: {error.strerror}") from None
    return declaration.read(content, str(source), source.parent)


def _apply(
    administrator: Administrator,
    wanted: Declaration,
    *,
    prune: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    def make(*, dry_run: bool) -> Applied:
        keys, defaults = wanted.keys, wanted.defaults
        return administrator.apply(keys, defaults, prune=prune, dry_run=dry_run)

    planned = make(dry_run=True)
    created = {one.after.name for one in planned.changes if one.after and not one.before}
    if not as_json:
        for line in applied.lines(planned):
            click.echo(line)
    if not planned.changes or dry_run:
        _tell_plan(planned, as_json=as_json)
        sys.exit(_WOULD_CHANGE if planned.changes else 0)
    _ask(planned, yes=yes)
    new = {name: path for name, path in wanted.secret_files.items() if name in created}
    with SecretFiles(new) as files:
        done = make(dry_run=False)
        _tell_done(done, files, as_json=as_json)


def _tell_plan(planned: Applied, *, as_json: bool) -> None:
    if as_json:
        options.print_json(applied.as_values(planned, dry_run=True))
    elif planned.changes:
        click.echo(f"Would be: {applied.summary(planned)}. Nothing was changed.")
    else:
        click.echo(f"All is as declared, at revision {planned.revision}.")


def _ask(planned: Applied, *, yes: bool) -> None:
    """Raises ClickException unless the operator agrees."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.ClickException(
            f"nothing was changed ({applied.summary(planned)}): give --yes to change it"
        )
    if not click.confirm(f"Change this ({applied.summary(planned)})?", err=True):
        raise click.ClickException("nothing was changed")


def _tell_done(done: Applied, files: SecretFiles, *, as_json: bool) -> None:
    values: dict[str, Any] = applied.as_values(done, dry_run=False)
    lines = [f"In force at revision {done.revision}: {applied.summary(done)}."]
    for change, shown in zip(done.changes, values["changes"], strict=True):
        if change.action != Action.KEY_CREATE or not change.secret or change.after is None:
            continue
        name = change.after.name
        if path := files.write(name, change.secret):
            del shown["key"]
            shown["secret_file"] = str(path)
            lines.append(f"The secret of {name} is in {path}.")
        else:
            lines.append(f"The secret of {name}, which is not shown again: {change.secret}")
    if as_json:
        options.print_json(values)
    else:
        click.echo("\n".join(lines))


@click.command()
@options.option(
    "--output", default="-", type=click.File("w", encoding="utf-8"), help="A file; - for stdout."
)
@administered
def export(place: Place, output: Any) -> None:
    """Write the API keys that are not revoked, and the server's defaults, as a declaration.

    policyd apply takes it. It holds no secret, and no digest of one: if it is applied to another
    database, new secrets are made.
    """
    with place.opened() as administrator:
        keys = administrator.all_keys()
        defaults = administrator.defaults()
    declared = tuple(
        DeclaredKey(one.name, one.policies, one.accept, one.expires_at) for one in keys
    )
    output.write(_HINT + write(Declaration(declared, defaults)))
