"""A log line that a flood of requests would repeat is logged seldom."""

from policyd.command.log_throttle import Throttle


def test_once_in_so_many_seconds() -> None:
    """The first line is logged, and then one whenever enough seconds have passed since the last."""
    now = 0.0
    throttle = Throttle(10, lambda: now)
    came = []
    for now in (0.0, 0.5, 9.9, 10.0, 10.1, 19.9, 35.0, 44.9, 45.0):
        if throttle.is_due():
            came.append(now)
    assert came == [0.0, 10.0, 35.0, 45.0]
