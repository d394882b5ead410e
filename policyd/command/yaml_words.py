"""YAML whose words stay words: YAML itself would read `off` as false, and options know best what
they take."""

from typing import Any

import yaml


class Loader(yaml.BaseLoader):
    """Makes strings, lists and mappings only, and refuses a name that is set twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See yaml.BaseLoader. Raises YAMLError."""
        names = [name.value for name, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"it sets {name} twice: take one of them out")
        return super().construct_mapping(node, deep)
