"""What a request cost, by published prices."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, time
from decimal import Decimal

import msgspec
import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import DataSnapshot, get_snapshot, set_custom_snapshot
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Tier,
    TieredPrices,
    TimeOfDateConstraint,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.decision_log.pricing import cost
from policyd.decision_log.record import MAX_TOKENS, Outcome
from tests.support import examples
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
    assert plain and read and written and both  # noqa: PT018  # All of them are known.
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


def _models() -> list[tuple[str, str]]:
    """The providers whose prices count, and each of their models."""
    listed = {one.id: one.models for one in get_snapshot().providers}
    return [(name, one.id) for name in ("openai", "anthropic") for one in listed[name]]


def _by_the_package(model: str, used: tuple[int, int, int, int], at: datetime) -> int | None:
    given, answered, cached, written = used
    usage = Usage(
        input_tokens=given,
        output_tokens=answered,
        cache_read_tokens=cached,
        cache_write_tokens=written,
    )
    for provider in ("openai", "anthropic"):
        with suppress(LookupError, ValueError):
            found = calc_price(usage, model, provider_id=provider, genai_request_timestamp=at)
            return round(found.total_price * 10**9)
    return None


_EDGES = [0, 1, 999, 100_000, 100_001, 200_000, 200_001, 272_000, 272_001, MILLION, MAX_TOKENS]
_TOKENS = st.sampled_from(_EDGES) | st.integers(0, 400_000) | st.integers(0, MAX_TOKENS)
_PARTS = st.just(0) | _TOKENS
_MOMENTS = st.integers(1_672_531_200, 1_830_297_600).map(lambda at: datetime.fromtimestamp(at, UTC))


@given(st.sampled_from(_models()), st.tuples(_TOKENS, _TOKENS, _PARTS, _PARTS), _MOMENTS)
@settings(max_examples=examples.times(4))
def test_the_same_as_the_package(
    model: tuple[str, str], used: tuple[int, int, int, int], at: datetime
) -> None:
    """Prices worked out here are those of the package, to the billionth of a dollar."""
    assert cost(model[1], *used, at) == _by_the_package(model[1], used, at)


@pytest.mark.slow
@pytest.mark.parametrize("day", [datetime(2025, 5, 1, tzinfo=UTC), AT])
def test_every_model(day: datetime) -> None:
    """Every model of both providers, at sizes of input where prices may change."""
    for _, model in _models():
        for size in _EDGES:
            used = size, 77, size // 3, size // 5
            assert cost(model, *used, day) == _by_the_package(model, used, day), (model, used)


def test_a_price_that_changes_by_the_hour() -> None:
    """A price that depends on more than the day is the package's, at each moment."""
    night = TimeOfDateConstraint(time(0), time(6))
    low, high = (ModelPrice(input_mtok=Decimal(dollars)) for dollars in (1, 4))
    prices = [ConditionalPrice(prices=high), ConditionalPrice(night, prices=low)]
    with _listing(prices) as model:
        assert cost(model, MILLION, 0, 0, 0, AT) == 1_000_000_000
        assert cost(model, MILLION, 0, 0, 0, AT.replace(hour=12)) == 4_000_000_000


@pytest.mark.parametrize(
    "price",
    [
        ModelPrice(input_mtok=Decimal(1), requests_kcount=Decimal(5)),
        ModelPrice(input_mtok=Decimal("0.00000000033"), output_mtok=Decimal(2)),
    ],
)
def test_a_price_that_is_not_only_for_tokens(price: ModelPrice) -> None:
    """Where a multiplication by tokens gives another price than the package's, the package's is
    taken: for a price of each request, or one with more digits than are counted here."""
    with _listing(price) as model:
        for used in ((0, 0, 0, 0), (MILLION, 3, 0, 0), (7, MAX_TOKENS, 0, 0)):
            assert cost(model, *used, AT) == _by_the_package(model, used, AT)


def tiered(base: str, *tiers: tuple[int, str]) -> TieredPrices:
    return TieredPrices(Decimal(base), [Tier(start, Decimal(price)) for start, price in tiers])


CHARGED = {
    "input alone": ModelPrice(input_mtok=Decimal(3)),
    "output too": ModelPrice(input_mtok=Decimal(3), output_mtok=Decimal(7)),
    "reads": ModelPrice(
        input_mtok=Decimal(3), output_mtok=Decimal(7), cache_read_mtok=Decimal("0.5")
    ),
    "writes": ModelPrice(
        input_mtok=Decimal(3), output_mtok=Decimal(7), cache_write_mtok=Decimal("4.5")
    ),
    "reads and writes": ModelPrice(
        input_mtok=Decimal(3), cache_read_mtok=Decimal("0.5"), cache_write_mtok=Decimal("4.5")
    ),
    "tiers": ModelPrice(
        input_mtok=tiered("3", (10, "4"), (11, "5"), (1000, "6")),
        output_mtok=tiered("7", (0, "8"), (1000, "9")),
        cache_read_mtok=tiered("0.5", (10, "0.25")),
    ),
    # Fractions of a billionth: a tenth of it, and a half.
    "tenths": ModelPrice(input_mtok=Decimal("0.0001"), output_mtok=Decimal(1)),
    "halves": ModelPrice(input_mtok=Decimal("0.0005"), output_mtok=Decimal(1)),
}
"""Prices for tokens alone, by what is charged."""
FEW = [
    (size, answered, read, written)
    for size in (*range(13), 1000, 1001)
    for answered in (0, 1)
    for read, written in ((0, 0), (1, 0), (0, 1), (1, 2), (4, 6))
] + [(MAX_TOKENS, MAX_TOKENS, 0, 0)]


@pytest.mark.parametrize("kind", CHARGED)
def test_the_package_is_asked_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a price is for tokens alone, the package is not asked again on that day: what it would
    charge for any number of tokens is known."""
    with _listing(CHARGED[kind]) as model:
        expected = [_by_the_package(model, used, AT) for used in FEW]
        cost(model, 1, 1, 0, 0, AT)
        monkeypatch.delattr(ModelInfo, "calc_price")
        assert [cost(model, *used, AT) for used in FEW] == expected


def test_a_model_that_a_provider_takes_from_another() -> None:
    """Only what the two providers have themselves has a price that is known."""
    with _listing(ModelPrice(input_mtok=Decimal(1))) as model:
        listed = get_snapshot().providers
        other = replace(listed[0], id="other")
        own = [
            replace(one, models=[], fallback_model_providers=["other"])
            for one in listed
            if one.id in ("openai", "anthropic")
        ]
        set_custom_snapshot(DataSnapshot([*own, other], from_auto_update=False))
        assert cost(model, 1, 0, 0, 0, AT) is None


_numbers = itertools.count()


@contextmanager
def _listing(prices: ModelPrice | list[ConditionalPrice]) -> Iterator[str]:
    """A model with these prices, in the package's list meanwhile."""
    snapshot = get_snapshot()
    openai = next(one for one in snapshot.providers if one.id == "openai")
    name = f"made-up-{next(_numbers)}"
    model = ModelInfo(name, ClauseEquals(name), prices=prices)
    set_custom_snapshot(
        DataSnapshot([replace(openai, models=[model]), *snapshot.providers], from_auto_update=False)
    )
    try:
        yield name
    finally:
        set_custom_snapshot(None)


def test_strange_names_take_no_memory() -> None:
    """Names of models come from outside: the package keeps none of them for policyd."""
    snapshot = get_snapshot()
    kept = len(snapshot._lookup_cache) + len(snapshot._provider_cache)
    for number in range(50):
        assert cost(f"stranger-{number}", 1, 1, 0, 0, AT) is None
    assert kept == len(snapshot._lookup_cache) + len(snapshot._provider_cache)
