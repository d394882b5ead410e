import pytest

# Before any of it is imported, so that a check there that fails shows its values.
pytest.register_assert_rewrite("tests.support")
