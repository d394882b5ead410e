"""Numbers with a unit: what they mean, and what is refused."""

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from gateway.settings import Settings as GatewaySettings
from policyd.command.configuration import Options
from policyd.command.settings import build, settings_of
from policyd.command.units import EXAMPLES, UNITS, Size, Span
from policyd.settings import ServerSettings

BOTH = pytest.mark.parametrize("kind", [ServerSettings, GatewaySettings])


def read(unit: str, text: str) -> Any:
    """What the text means as a setting in that unit."""
    kind = Size(unit, None, None) if unit == "bytes" else Span(unit, None, None, is_open=False)
    return kind.convert(text, None, None)


@pytest.mark.parametrize(
    ("unit", "text", "number"),
    [
        ("bytes", "4GiB", 4 * 2**30),
        ("bytes", "4Gi", 4 * 2**30),
        ("bytes", "1.5 MiB", 3 * 2**19),
        ("bytes", "64kib", 2**16),
        ("bytes", "2GB", 2 * 10**9),
        ("bytes", "7B", 7),
        ("bytes", "4096", 4096),
        ("seconds", "500ms", 0.5),
        ("seconds", "0.1s", 0.1),
        ("seconds", "5m", 300),
        ("seconds", "5min", 300),
        ("seconds", "1h", 3600),
        ("seconds", "2.5", 2.5),
        ("hours", "24h", 24),
        ("hours", "30m", 0.5),
        ("hours", "7d", 168),
        ("hours", "24", 24),
        ("days", "90d", 90),
        ("days", "36h", 1.5),
        ("days", "12w", 84),
        ("days", "90", 90),
    ],
)
def test_what_they_mean(unit: str, text: str, number: float) -> None:
    """A unit of its own wins over the setting's, which a plain number keeps."""
    assert read(unit, text) == number


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        *(("bytes", text) for text in ("4G", "4s", "4 GiB 2", "GiB", "-1GiB", "1.5B", "1h", "")),
        *(("seconds", text) for text in ("1y", "1GiB", "5 minutes", "1h30m", "s", "-1s", "1,5s")),
        *(("days", text) for text in ("90days", "1M", "٣dd")),
    ],
)
def test_what_is_refused(unit: str, text: str) -> None:
    """A value with another unit, or without a number, is refused, with examples of right values."""
    with pytest.raises(click.BadParameter) as caught:
        read(unit, text)
    assert unit in caught.value.message


@pytest.mark.parametrize("unit", UNITS)
def test_the_examples(unit: str) -> None:
    """Each example in an error is understood."""
    for one in EXAMPLES[unit].replace(" or ", ", ").split(", "):
        assert read(unit, one) > 0


@given(st.sampled_from(sorted(UNITS)), st.data())
def test_exact(unit: str, data: st.DataObject) -> None:
    """No unit loses a part of a whole number."""
    name = data.draw(st.sampled_from(sorted(UNITS[unit])))
    number = data.draw(st.integers(0, 10**6))
    assert read(unit, f"{number}{name}") == pytest.approx(float(number * UNITS[unit][name]), rel=0)


@BOTH
def test_every_setting_takes_them(kind: Any, tmp_path: Path) -> None:
    """Every setting of a size or a time takes its unit's examples, from flags, environment and
    file alike, and is a plain number from then on."""
    options = Options("X")

    @click.command()
    @options.config
    @options.settings(kind)
    def command(**given: Any) -> None:
        with_unit = {name: value for name, value in given.items() if name in units}
        assert all(isinstance(value, int | float) for value in with_unit.values())
        click.echo(repr(sorted(with_unit.items())))

    units = {one.name: one.unit for one in settings_of(kind) if one.unit}
    assert set(units.values()) <= UNITS.keys()
    texts = {"bytes": "1GiB", "seconds": "5m", "hours": "2d", "days": "4w"}
    wanted = {name: texts[unit] for name, unit in units.items()}
    flags = [word for name, text in wanted.items() for word in (f"--{name}", text)]
    flags = [word.replace("_", "-") if word.startswith("--") else word for word in flags]
    runner = CliRunner()
    by_flag = runner.invoke(command, flags)
    by_variable = runner.invoke(
        command, env={f"X_{name.upper()}": text for name, text in wanted.items()}
    )
    lines = [f"{name}: {text}\n" for name, text in wanted.items()]
    (tmp_path / "x.yaml").write_text("".join(lines))
    by_file = runner.invoke(command, ["--config", str(tmp_path / "x.yaml")])
    assert by_flag.exit_code == 0, by_flag.output
    assert by_flag.output == by_variable.output == by_file.output
    assert build(kind, {"drain": 300.0}).drain == 300
