"""Labels are bounded, whatever clients and upstreams call their models."""

import pytest

from policyd.decision_log.pricing import priced_as
from policyd.telemetry import bounds
from policyd.telemetry.bounds import MODELS, OTHER, Names


def test_ten_thousand_models() -> None:
    """The first names each have a label of their own, and all further names share one."""
    names = Names(MODELS)
    found = {names.bounded(f"model-{number}") for number in range(10_000)}
    assert len(found) == MODELS + 1
    assert OTHER in found
    assert names.bounded("model-0") == "model-0"


@pytest.mark.parametrize(
    "name",
    ["", "a b", "a\nb", 'a"b', "x" * 65, "sk-ä", "{}", "up-" + "a1B2" * 12, "sk-" + "a" * 40],
)
def test_what_is_no_name(name: str) -> None:
    """A text that does not look like a model's name is never a label."""
    assert Names(MODELS).bounded(name) == OTHER


def test_a_model_counts_by_its_name_in_the_list_of_prices() -> None:
    """Versions of a model are one; what is not in the list has no name."""
    assert priced_as("gpt-4o-mini-2024-07-18") == priced_as("gpt-4o-mini") == "gpt-4o-mini"
    assert {priced_as(f"stranger-{number}") for number in range(1000)} == {""}


@pytest.mark.parametrize(
    ("number", "label"), [(0, "none"), (200, "200"), (599, "599"), (600, "other"), (99, "other")]
)
def test_statuses(number: int, label: str) -> None:
    """Each status that HTTP knows has a label of its own."""
    assert bounds.status(number) == label
