"""Programs that send a first request through the gateway, ready to be pasted and run.

They run as they are printed, also where no provider's key is set: the demo's upstream needs none,
and a gateway with --upstream-api-key-file sends its own. OpenAI's clients cannot be created without
one, so "none" takes its place.
"""

from typing import NamedTuple

_BODY = (
    '{"model": "gpt-4o-mini", "user": "alice", '
    '"messages": [{"role": "user", "content": "Hello there"}]}'
)
_CURL = """\
curl {url}/v1/chat/completions \\
  -H "Authorization: Bearer ${{OPENAI_API_KEY:-none}}" \\
  -H "x-usagepanda-api-key: {key}" \\
  -H 'Content-Type: application/json' \\
  -d '{body}'"""
_PYTHON = """\
# pip install openai
import os

import openai

client = openai.OpenAI(
    base_url="{url}/v1",
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
    default_headers={{"x-usagepanda-api-key": {key}}},
)
answer = client.chat.completions.create(
    model="gpt-4o-mini",
    user="alice",
    messages=[{{"role": "user", "content": "Hello there"}}],
)
print(answer.choices[0].message.content)"""
_NODE = """\
// npm install openai; save this as ask.mjs, and run: node ask.mjs
import OpenAI from "openai";

const client = new OpenAI({{
  baseURL: "{url}/v1",
  apiKey: process.env.OPENAI_API_KEY ?? "none",
  defaultHeaders: {{ "x-usagepanda-api-key": {key} }},
}});
const answer = await client.chat.completions.create({{
  model: "gpt-4o-mini",
  user: "alice",
  messages: [{{ role: "user", content: "Hello there" }}],
}});
console.log(answer.choices[0].message.content);"""


class Snippet(NamedTuple):
    """A program in one language."""

    id: str
    label: str
    text: str


def snippets(url: str, secret: str | None = None) -> list[Snippet]:
    """The programs for the gateway at `url`, which is plain (ServerSettings checks it), with the
    API key `secret`. With None they read it from the environment, as POLICYD_KEY."""
    curl, python, node = "$POLICYD_KEY", 'os.environ["POLICYD_KEY"]', "process.env.POLICYD_KEY"
    if secret is not None:
        curl, python, node = secret, f'"{secret}"', f'"{secret}"'
    base = url.rstrip("/")
    return [
        Snippet("curl", "curl", _CURL.format(url=base, key=curl, body=_BODY)),
        Snippet("python", "Python", _PYTHON.format(url=base, key=python)),
        Snippet("node", "Node", _NODE.format(url=base, key=node)),
    ]
