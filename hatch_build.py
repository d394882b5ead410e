"""Hooks of hatchling: what wheels and source distributions carry that stands in no file as it is.

The commit is that of the checkout; without git's files, as in a container's build, the environment
names it in SOURCE_COMMIT. A source distribution has it in a file already.

SOURCE_URL is the web page of the repository that a release is published from. README.md names
other files by relative links, which lead nowhere on a package index; with that URL they lead there.
"""

import importlib.util
import os
import re
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = r"(?![a-z]+:|#)"
_IMAGE = re.compile(rf"(!\[[^]]*\]\(){_RELATIVE}")
_LINK = re.compile(rf"(?<=\]\(){_RELATIVE}")


class Commit(BuildHookInterface[Any]):
    """Adds the file that policyd/build_info.py reads."""

    _folder: "tempfile.TemporaryDirectory[str] | None" = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See BuildHookInterface. `version` is the kind of wheel: an editable one gets no file."""
        root = Path(self.root)
        info = _load(root / "policyd/build_info.py")
        commit = info.commit_of(root) or os.environ.get("SOURCE_COMMIT", "")
        if version == "editable" or not commit:
            return
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name, info.CARRIED)
        file.write_text(commit + "\n", "ascii")
        build_data["force_include"][str(file)] = f"policyd/{info.CARRIED}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """See BuildHookInterface."""
        if self._folder is not None:
            self._folder.cleanup()


class Readme(MetadataHookInterface):
    """Gives the README and the URLs."""

    def update(self, metadata: dict[str, Any]) -> None:
        """See MetadataHookInterface."""
        text = Path(self.root, "README.md").read_text("utf-8")
        urls = {}
        if source := os.environ.get("SOURCE_URL", "").rstrip("/"):
            files = f"{source}/blob/v{metadata['version']}/"
            pictures = f"{source}/raw/v{metadata['version']}/"
            text = _LINK.sub(files, _IMAGE.sub(rf"\1{pictures}", text))
            urls = {
                "Source": source,
                "Documentation": files + "docs/README.md",
                "Changelog": files + "CHANGELOG.md",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = urls


def _load(file: Path) -> ModuleType:
    """The module in `file`, which is not installed yet."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
