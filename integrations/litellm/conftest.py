"""What the tests of the LiteLLM hook need."""

from tests.conftest import policyd as policyd
