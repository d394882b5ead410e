"""A stand-in until the core is merged."""

from policyd.engine.policy import Policy


def _none(text: str) -> None:
    if text:
        raise ValueError("it takes no value")


def _limit(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is no limit: give a whole number")
    return int(text)


ORIGINAL = Policy("enforce_user_ids", _none)
TABLE = (Policy("max_tokens", _limit), Policy("max_prompt_chars", _limit), ORIGINAL)
BY_NAME = {policy.name: policy for policy in TABLE}
