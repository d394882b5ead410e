import pytest

# Before support modules are imported, so that a failing assertion there shows its values.
pytest.register_assert_rewrite("tests.support")
