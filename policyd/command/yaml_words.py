"""YAML whose words stay words: YAML itself would read `off` as false, and each option knows best
what it takes."""

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

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        """See yaml.BaseLoader. Raises YAMLError for characters that no file name can hold."""
        text = str(super().construct_scalar(node))
        if any(one == "\0" or "\ud800" <= one <= "\udfff" for one in text):
            raise yaml.YAMLError("it holds a NUL, or half a character: take it out")
        return text
