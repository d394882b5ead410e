"""What a request cost, by public prices: those that the package genai-prices knows of its day."""

from datetime import datetime

from genai_prices import Usage, calc_price

_NANO = 10**9
_PROVIDERS = ("openai", "anthropic")
"""Whose prices count, the first that has the model."""


def cost(
    model: str,
    input_tokens: int,
    output_tokens: int,
    cached_tokens: int,
    cache_write_tokens: int,
    at: datetime,
) -> int | None:
    """Billionths of a US dollar. None: the model's price is not known.

    `cached_tokens`, read from the upstream's cache, and `cache_write_tokens`, put into it, are
    among the `input_tokens`.
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
