"""What a request cost, by the public prices of its day, from the package genai-prices."""

from datetime import datetime

from genai_prices import Usage, calc_price

_NANO = 10**9
_PROVIDERS = ("openai", "anthropic")
"""The providers whose prices count: the first one that has the model."""


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
