"""Code that sends a request with an API key, ready to be copied, for several languages."""

from typing import NamedTuple

from policyd.descriptor.headers import KEY_HEADER

PLACEHOLDER = "YOUR_API_KEY"
"""Stands in place of an API key that is not shown any more."""
_CURL = """\
curl '{url}/v1/chat/completions' \\
  -H "Authorization: Bearer ${{OPENAI_API_KEY:-none}}" \\
  -H '{header}: {key}' \\
  -H 'Content-Type: application/json' \\
  -d '{{"model": "gpt-4o-mini", "user": "alice",
       "messages": [{{"role": "user", "content": "Hello"}}]}}'
"""
_PYTHON = """\
import os

import openai

client = openai.OpenAI(
    base_url="{url}/v1",
    # The provider's own key, as before. An upstream that asks for none, as in the demo, needs none.
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
    default_headers={{"{header}": "{key}"}},
)
answer = client.chat.completions.create(
    model="gpt-4o-mini",
    user="alice",
    messages=[{{"role": "user", "content": "Hello there"}}],
)
print(answer.choices[0].message.content)
"""
_NODE = """\
import OpenAI from "openai";

const client = new OpenAI({{
  baseURL: "{url}/v1",
  // The provider's own key, as before. An upstream that asks for none, as in the demo, needs none.
  apiKey: process.env.OPENAI_API_KEY ?? "none",
  defaultHeaders: {{ "{header}": "{key}" }},
}});
const answer = await client.chat.completions.create({{
  model: "gpt-4o-mini",
  user: "alice",
  messages: [{{ role: "user", content: "Hello there" }}],
}});
console.log(answer.choices[0].message.content);
"""


class Snippet(NamedTuple):
    """Code in one language."""

    name: str
    label: str
    text: str


def snippets(gateway: str, key: str = PLACEHOLDER) -> list[Snippet]:
    """The code that asks the gateway at this URL, with `key`."""
    given = {"url": gateway.rstrip("/"), "key": key, "header": KEY_HEADER}
    return [
        Snippet("curl", "curl", _CURL.format(**given).rstrip()),
        Snippet("python", "Python", _PYTHON.format(**given).rstrip()),
        Snippet("node", "Node", _NODE.format(**given).rstrip()),
    ]
