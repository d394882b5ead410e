"""The declaration of docs/administration.md does what the page shows."""

import re
from pathlib import Path

import jsonschema
import yaml

from policyd.cli.declaration_schema import schema
from tests.support.commands import invoke
from tests.support.databases import put_database

PAGE = (Path(__file__).parents[2] / "docs" / "administration.md").read_text()


def test_the_declaration(tmp_path: Path) -> None:
    """What would change is as on the page, and an editor finds nothing wrong with it."""
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "keys.yaml").write_text(text)
    url = put_database(f"sqlite:///{tmp_path}/policyd.db")
    words = ("policyd", "apply", "-f", str(tmp_path / "keys.yaml"), "--database-url", url)
    done = invoke(*words, "--dry-run")
    assert f"--dry-run\n{done.stdout.decode()}$ policyd" in PAGE
    jsonschema.validate(yaml.safe_load(text.replace(": 2027-06-30T00:00:00Z", ": never")), schema())
