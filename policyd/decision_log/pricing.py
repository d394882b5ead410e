"""What a request cost, by the public prices of its day, from the package genai-prices."""

from contextlib import suppress
from datetime import datetime
from functools import lru_cache

from genai_prices import Usage, calc_price

_NANO = 10**9
_NOTHING = Usage(input_tokens=0, output_tokens=0)
_PROVIDERS = ("openai", "anthropic")
"""The providers whose prices count: the first one that has the model."""


@lru_cache(maxsize=1024)
def priced_as(model: str) -> str:
    """The name of the model in the list of prices, such as gpt-4o for gpt-4o-2024-08-06; "": it is
    not in it."""
    for provider in _PROVIDERS:
        with suppress(LookupError, ValueError):
            return calc_price(_NOTHING, model, provider_id=provider).model.id
    return ""


def cost(
    model: str,
    input_tokens: int,
    output_tokens: int,
    cached_tokens: int,
    cache_write_tokens: int,
    at: datetime,
) -> int | None:
    """The cost in billionths of a US dollar. None: the model's price is not known.

    The `input_tokens` include `cached_tokens`, which the upstream read from its cache, and
    `cache_write_tokens`, which it wrote to it. `at` is the moment of the request.
    """
    usage = Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=cached_tokens,
        cache_write_tokens=cache_write_tokens,
    )
    for provider in _PROVIDERS:
        try:
            found = calc_price(usage, model, provider_id=provider, genai_request_timestamp=at)
        except (LookupError, ValueError):
            continue
        return round(found.total_price * _NANO)
    return None
