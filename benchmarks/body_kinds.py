"""Large bodies of several kinds, as clients send them."""

import base64
import json
import random
from pathlib import Path
from typing import Any

from benchmarks import traffic

_chance = random.Random(14)  # keeps no secret


def bodies(size: int) -> dict[str, bytes]:
    """A body of about `size` bytes of each kind."""
    image = base64.b64encode(_chance.randbytes(size * 3 // 4)).decode()
    source = Path(__file__).read_text()
    accents = "Où est la différence entre « naïf » et « naïve » ? "
    spoken = '"Yes," she said,\n"and then?"\t'
    embeddings = {"model": "m", "user": "u"}
    numbers = [_chance.randrange(100_000) for _ in range(size * 10 // 69)]
    made: dict[str, Any] = {
        "an image": _chat([{"type": "image_url", "image_url": {"url": f"data:;base64,{image}"}}]),
        "one long text": _chat(traffic.TEXT * (size // len(traffic.TEXT))),
        "messages of 300 characters": _messages(size, traffic.TEXT * 4),
        "messages of 75 characters": _messages(min(size, 5_000_000), traffic.TEXT),
        "another alphabet, escaped": _chat(accents * (size // 75)),
        "many escapes": _chat(spoken * (size // 40)),
        "source code": _chat((source * (size // len(source) + 1))[: size * 9 // 10]),
        "embeddings of texts": embeddings | {"input": [traffic.TEXT * 4] * (size // 304)},
        "embeddings of tokens": embeddings | {"input": numbers},
    }
    found = {kind: json.dumps(body).encode() for kind, body in made.items()}
    plain = json.dumps(made["another alphabet, escaped"], ensure_ascii=False)
    found["another alphabet, in UTF-8"] = plain.encode()
    found["white space"] = b"{" + b" \n" * (size // 2) + b'"user":"u"}'
    return found


def _chat(content: object) -> dict[str, object]:
    return {"model": "m", "user": "u", "messages": [{"role": "user", "content": content}]}


def _messages(size: int, text: str) -> dict[str, object]:
    message = {"role": "user", "content": text}
    return {"model": "m", "user": "u", "messages": [message] * (size // (len(text) + 36))}
