"""LocalDecisionService's messages -> settings of keys, and the server's defaults."""

from collections.abc import Iterable, Iterator

from policyd.engine.settings import KeyChange, KeySettings, ServerDefaults, Setting, Settings
from policyd.engine.states import Mode, Override
from policyd.v1 import local_pb2 as pb

_DIGEST = 32
"""Bytes of a secret's SHA-256."""
_KEPT = 4096
"""Settings that are kept for sharing, at most: a stream lasts long, and settings change."""
_Shared = tuple[Settings, tuple[str, ...]]


class Pieces:
    """Reads the pieces of one stream. Keys with equal settings share them in memory."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Shared] = {}

    def changes(self, piece: pb.KeyPiece) -> Iterator[KeyChange]:
        """The changes of one piece.

        Raises ValueError, also where the piece names settings that it does not have.
        """
        shared = [self._shared(one) for one in piece.shared]
        for key in piece.keys:
            if key.shared >= len(shared):
                raise ValueError("a piece of keys names settings that it does not have")
            policies, accept = shared[key.shared]
            until = key.until if key.HasField("until") else None
            settings = KeySettings(key.key_id, policies, accept, until)
            yield KeyChange(_digest(key.digest), settings)
        for digest in piece.gone:
            yield KeyChange(_digest(digest), None)

    def _shared(self, one: pb.SharedSettings) -> _Shared:
        as_sent = one.SerializeToString(deterministic=True)
        found = self._known.get(as_sent)
        if found is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            found = self._known[as_sent] = (_settings(one.policies), tuple(one.accept))
        return found


def _digest(given: bytes) -> bytes:
    if len(given) != _DIGEST:
        raise ValueError(f"a digest has {_DIGEST} bytes, not {len(given)}")
    return given


def defaults_of(complete: pb.SettingsComplete) -> ServerDefaults | None:
    """What holds where a key sets nothing; None where nothing does. Raises ValueError."""
    if not complete.HasField("defaults"):
        return None
    given = complete.defaults
    return ServerDefaults(
        _settings(given.policies),
        tuple(given.end_user_headers),
        tuple(given.end_user_callers),
        given.revision,
    )


def _settings(given: Iterable[pb.NamedPolicySetting]) -> Settings:
    return tuple((one.policy, _setting(one)) for one in given)


def _setting(one: pb.NamedPolicySetting) -> Setting:
    setting = one.setting
    mode = Mode(setting.mode) if setting.mode else None
    override = Override(setting.override_policy) if setting.override_policy else None
    return Setting(mode, setting.value, override)
