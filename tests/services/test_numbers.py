"""The numbers on the wire."""

from policyd.engine.states import Mode, UserState
from policyd.v1 import policy_pb2


def test_the_numbers_of_model_and_proto_are_the_same() -> None:
    """The model's enumerations and the proto's have the same names and numbers."""
    states = {f"USER_STATE_{s.name}": s.value for s in UserState if s}
    assert dict(policy_pb2.UserState.items()) == states | {"USER_STATE_UNSPECIFIED": 0}
    modes = {f"ENFORCE_MODE_{m.name}": m.value for m in Mode}
    assert dict(policy_pb2.EnforceMode.items()) == modes | {"ENFORCE_MODE_UNSPECIFIED": 0}
