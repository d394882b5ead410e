"""What a request cost, by the public prices of its day, from the package genai-prices.

The package takes a tenth of a millisecond for each answer. So what it charges for a token is kept
for each model and day, and multiplied here, in whole numbers. The package is asked itself where a
price depends on more than the day and the number of tokens, and wherever the multiplication differs
from it. Names of models come from outside, so every cache is bounded, and the package's own caches,
which are not, are bypassed.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache

from genai_prices import Usage
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider, StartDateConstraint, TieredPrices

_NANO = 10**9
_PARTS = 10**6
"""Charges are in millionths of a billionth of a dollar."""
_PROVIDERS = ("openai", "anthropic")
"""The providers whose prices count: the first one that has the model."""
_TRIALS = ((1, 0, 0, 0), (0, 1, 0, 0), (7, 3, 2, 1), (7, 3, 2, 6), (900_001, 70_007, 501, 7_001))
"""Numbers of tokens, in the order of cost(), for which charges are compared with the package."""


@lru_cache(maxsize=1024)
def priced_as(model: str) -> str:
    """The name of the model in the list of prices, such as gpt-4o for gpt-4o-2024-08-06; "" where
    it is not listed."""
    return next((found.id for _, found in _listed(model)), "")


def cost(
    model: str,
    input_tokens: int,
    output_tokens: int,
    cached_tokens: int,
    cache_write_tokens: int,
    at: datetime,
) -> int | None:
    """The cost in billionths of a US dollar; None where the model's price is not known.

    The `input_tokens` include `cached_tokens`, which the upstream read from its cache, and
    `cache_write_tokens`, which it wrote to it. `at` is the moment of the request, in UTC.
    """
    for tariff in _tariffs(model, at.toordinal()):
        used = (input_tokens, output_tokens, cached_tokens, cache_write_tokens)
        found = tariff.cost(*used) if isinstance(tariff, _Charges) else tariff.cost(used, at)
        if found is not None:
            return found
    return None


@dataclass(frozen=True, slots=True)
class _Charges:
    """What a model charges for a token on one day, by the size of the input.

    Tokens that come from the cache, or go to it, are a part of the input. So their charge is how
    much more, or less, they cost than other input.
    """

    beyond: Sequence[int]
    """Tokens of input beyond which the next charges hold."""
    rates: Sequence[tuple[int, int, int, int]]
    """Charges for a token of input, of output, read from the cache, and written to it."""
    is_cached_apart: bool
    is_written_apart: bool
    """Whether these are taken out of the input, which must then hold them."""

    def cost(self, taken: int, given: int, cached: int, written: int) -> int | None:
        """Billionths of a dollar, rounded; None where the input is less than its cached parts."""
        apart = cached * self.is_cached_apart + written * self.is_written_apart
        if apart > taken:
            return None
        one, other, read, write = self.rates[bisect_left(self.beyond, taken)]
        total = taken * one + given * other + cached * read + written * write
        whole, rest = divmod(total, _PARTS)
        # Half of one is rounded to the even number, as round() does.
        return whole + (2 * rest > _PARTS or (2 * rest == _PARTS and whole % 2))


@dataclass(frozen=True, slots=True)
class _Package:
    """A model whose price the package works out for each request."""

    provider: Provider
    model: ModelInfo

    def cost(self, used: tuple[int, int, int, int], at: datetime) -> int | None:
        """Billionths of a dollar; None where the package has no price for that."""
        names = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
        usage = Usage(**dict(zip(names, used, strict=True)))
        with suppress(ValueError):
            found = self.model.calc_price(usage, self.provider, genai_request_timestamp=at)
            return round(found.total_price * _NANO)
        return None


@lru_cache(maxsize=1024)
def _tariffs(model: str, day: int) -> tuple[_Charges | _Package, ...]:
    """What each provider that has the model charges for it on this day."""
    return tuple(_tariff(provider.id, found.id, day) for provider, found in _listed(model))


def _listed(model: str) -> Iterator[tuple[Provider, ModelInfo]]:
    """The providers that have the model, and what they call it."""
    for provider in map(_provider, _PROVIDERS):
        if found := provider.find_model(model):
            yield provider, found


def _provider(name: str) -> Provider:
    return next(one for one in get_snapshot().providers if one.id == name)


# Many names stand for one model.
@lru_cache(maxsize=1024)
def _tariff(provider_id: str, model_id: str, day: int) -> _Charges | _Package:
    provider = _provider(provider_id)
    model = next(one for one in provider.models if one.id == model_id)
    package = _Package(provider, model)
    at = datetime.fromordinal(day).replace(tzinfo=UTC)
    if not _is_of_the_day(model):
        return package
    charges = _charges(model.get_prices(at))
    sizes = (0, *charges.beyond)
    trials = [
        (size + one, other, read, write) for size in sizes for one, other, read, write in _TRIALS
    ]
    is_same = all(charges.cost(*used) == package.cost(used, at) for used in trials)
    return charges if is_same else package


def _is_of_the_day(model: ModelInfo) -> bool:
    """Whether the model's price is the same all day."""
    conditions = () if isinstance(model.prices, ModelPrice) else model.prices
    return all(isinstance(one.constraint, StartDateConstraint | None) for one in conditions)


def _charges(price: ModelPrice) -> _Charges:
    prices: Mapping[str, Decimal | TieredPrices | None] = vars(price)
    tiered = [one for one in prices.values() if isinstance(one, TieredPrices)]
    beyond = sorted({tier.start for one in tiered for tier in one.tiers})
    is_cached_apart = prices.get("cache_read_mtok") is not None
    is_written_apart = prices.get("cache_write_mtok") is not None
    rates = []
    for size in (0, *(start + 1 for start in beyond)):
        taken, given, cached, written = (
            _charge(prices.get(name), size)
            for name in ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok")
        )
        read, write = (cached - taken) * is_cached_apart, (written - taken) * is_written_apart
        rates.append((taken, given, read, write))
    return _Charges(beyond, rates, is_cached_apart, is_written_apart)


def _charge(price: Decimal | TieredPrices | None, size: int) -> int:
    """The charge for a token of a request with `size` tokens of input, from the price of a
    million."""
    if isinstance(price, TieredPrices):
        reached = (tier.price for tier in reversed(price.tiers) if size > tier.start)
        price = next(reached, price.base)
    # A dollar for a million tokens is 1,000 billionths for one: _PARTS times as much here. A price
    # with more digits than that is found to differ from the package's.
    return int(price * _NANO) if price is not None else 0
