"""What a request cost, by published prices."""

from datetime import UTC, datetime

import msgspec
import pytest

from policyd.decision_log.pricing import cost
from policyd.decision_log.record import Outcome
from tests.support.records import decision_id

AT = datetime(2026, 11, 1, tzinfo=UTC)
MILLION = 1_000_000


@pytest.mark.parametrize("model", ["gpt-5.6-sol", "claude-sonnet-4-5"])
def test_what_goes_to_the_cache_and_comes_from_it(model: str) -> None:
    """Context written to the cache costs more than other context, context read from it less."""
    plain = cost(model, 1000, 0, 0, 0, AT)
    read = cost(model, 1000, 0, 400, 0, AT)
    written = cost(model, 1000, 0, 0, 400, AT)
    both = cost(model, 1000, 0, 400, 400, AT)
    assert plain and read and written and both  # noqa: PT018 - all of them are known
    assert read < plain < written
    assert both == read + written - plain
    # The price lists of both providers charge a quarter more.
    assert written == pytest.approx(plain * (1 + 0.4 * 0.25))


def test_models_without_such_prices() -> None:
    """Writing to the cache costs nothing more where the provider charges nothing.

    An unknown model's cost is unknown.
    """
    assert cost("gpt-4o-mini", MILLION, 0, 0, 400, AT) == 150_000_000
    assert cost("no-such-model", 1, 1, 0, 0, AT) is None


def test_the_price_of_an_answer() -> None:
    """Tokens of the answer have a price of their own, beside those of the context."""
    assert cost("gpt-4o-mini", 0, MILLION, 0, 0, AT) == 600_000_000
    assert cost("gpt-4o-mini", MILLION, MILLION, 0, 0, AT) == 750_000_000


def test_the_price_of_the_day() -> None:
    """A request costs what the model cost at its moment: o3 became cheaper in June 2025."""
    before, after = datetime(2025, 6, 1, tzinfo=UTC), datetime(2025, 7, 1, tzinfo=UTC)
    assert cost("o3", MILLION, 0, 0, 0, before) == 10_000_000_000
    assert cost("o3", MILLION, 0, 0, 0, after) == 2_000_000_000


def test_a_model_of_another_provider() -> None:
    """The cost of a model that only another provider has is unknown, whatever that one charges."""
    assert cost("mistral-large-latest", MILLION, 0, 0, 0, AT) is None


def test_counts_that_cannot_be() -> None:
    """More of the cache than of context makes the cost unknown where each has a price."""
    assert cost("claude-sonnet-4-5", 10, 0, 8, 8, AT) is None


def test_an_outcome_of_an_older_policyd() -> None:
    """An outcome that an older policyd left in the spool is read, and keeps its cost."""
    line = msgspec.json.encode(["O", decision_id(), 1, 200, 1, 2, "x", "m", "o", 9, 5, 3, 4500])
    found = msgspec.json.decode(line, type=Outcome)
    assert (found.cached_tokens, found.cost_nano, found.cache_write_tokens) == (3, 4500, None)
