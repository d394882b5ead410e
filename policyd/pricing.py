"""What a request cost, by public prices: those that the package genai-prices knows of its day."""

from datetime import datetime

from genai_prices import Usage, calc_price

_NANO = 10**9


def cost(
    model: str, input_tokens: int, output_tokens: int, cached_tokens: int, at: datetime
) -> int | None:
    """Billionths of a US dollar. None: nobody knows the model's price."""
    usage = Usage(
        input_tokens=input_tokens, output_tokens=output_tokens, cache_read_tokens=cached_tokens
    )
    try:
        found = calc_price(usage, model, provider_id="openai", genai_request_timestamp=at)
    except (LookupError, ValueError):
        return None
    return round(found.total_price * _NANO)
