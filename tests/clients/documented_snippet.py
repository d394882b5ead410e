"""The snippet of the product's page, word by word, under openai==0.27.8."""

import os

import openai

openai.api_key = "sk-any"
openai.api_base = os.environ["GATEWAY"] + "/v1"
USAGE_PANDA_KEY = os.environ["USAGE_PANDA_KEY"]

# fmt: off
response = openai.Completion.create(
  model="text-davinci-003",
  prompt="Hello there",
  headers={ # Usage Panda Auth
    "x-usagepanda-api-key": USAGE_PANDA_KEY,
    "x-usagepanda-enforce-user-ids": "true"
  }
)
output = response.choices[0].text
