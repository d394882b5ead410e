"""What the documentation names exists: files, headings, sections of the contract, packages."""

import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
# Folders that other tools make, or that `make` builds.
ELSEWHERE = ("node_modules", "target", "dist", "data", "mutants")
TEXTS = {".py", ".json", ".yaml", ".md", ".toml", ".proto"}


def files(*suffixes: str) -> Iterator[Path]:
    """The project's own files with one of these endings."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in ELSEWHERE
        )
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(suffixes))


class Link(NamedTuple):
    """A link, and the page that it stands on."""

    page: Path
    target: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.target}"


@cache
def tokens(page: Path) -> list[Token]:
    """The parsed page, with the contents of its paragraphs."""
    parsed = MarkdownIt("commonmark").enable("table").parse(page.read_text())
    return [inner for outer in parsed for inner in (outer, *(outer.children or ()))]


def links(page: Path) -> Iterator[Link]:
    """The page's links and pictures."""
    for token in tokens(page):
        target = token.attrs.get("href") or token.attrs.get("src")
        if isinstance(target, str):
            yield Link(page, target)


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of the page's headings, as GitHub names them."""
    found: Counter[str] = Counter()
    made = []
    parsed = tokens(page)
    for opening, inline in pairwise(parsed):
        if opening.type != "heading_open":
            continue
        text = "".join(part.content for part in inline.children or ())
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        made.append(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return frozenset(made)


PAGES = sorted(files(".md"))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@every_page
def test_links(page: Path) -> None:
    """Each link leads to a file of the project, and to a heading in it if it names one."""
    for link in links(page):
        if ":" not in link.target:
            path, _, anchor = unquote(link.target).partition("#")
            to = (page.parent / path).resolve() if path else page
            assert to.is_relative_to(ROOT), link
            assert to.exists(), link
            assert not anchor or (to.suffix == ".md" and anchor in anchors(to)), link


# "docs/contract.md, section 3", "… sections 1 to 4 and 7", "… section 5: the key; and section 6".
CITATION = re.compile(
    r"docs/contract\.md, sections? (\d(?:(?:,| to| and|, and) \d)*)(?:[^.;]*; and section (\d))?"
)
CONTRACT = re.compile(r"\bcontract\.md\b")
WHOLE = {
    "tests/docs/test_contract.py": "it compares the page, all of it, with the code",
    "tests/docs/test_links.py": "it looks at citations",
}
"""Files that name the page itself, and why."""


@cache
def prose(file: Path) -> str:
    """A file's text, with a comment or docstring of several lines as one."""
    return re.sub(r"\s*\n\s*(?:#|//)?\s*", " ", file.read_text())


CITATIONS = [
    (str(file.relative_to(ROOT)), section)
    for file in files(*TEXTS)
    for found in CITATION.findall(prose(file))
    for section in re.findall(r"\d", " ".join(found))
]


@pytest.mark.parametrize(("file", "section"), sorted(set(CITATIONS)))
def test_citation_of_the_contract(file: str, section: str) -> None:
    """The contract has the section that a file cites."""
    contract = ROOT / "docs" / "contract.md"
    assert any(anchor.startswith(f"{section}-") for anchor in anchors(contract)), file


def test_citations_are_read() -> None:
    """Lists, and what stands behind a semicolon, are read to the end; a citation without a section
    is none.
    """
    found = {
        file: {section for name, section in CITATIONS if name == file} for file, _ in CITATIONS
    }
    assert found["policyd/engine/decision.py"] == {"1", "4", "7"}
    assert found["tests/vectors/keys.json"] == {"5", "6"}
    assert found["gateway/replies.py"] == {"4", "5"}
    assert CITATION.search("docs/contract.md, 4 and 5") is None


def test_code_cites_sections() -> None:
    """Code, tests and data that name the contract's page name the section, too; and where they say
    "the contract", the same file has the section.
    """
    whole, bare = [], []
    for file in files(*TEXTS - {".md"}):
        name, text = str(file.relative_to(ROOT)), prose(file)
        cited = len(CITATION.findall(text))
        whole += [name] * (len(CONTRACT.findall(text)) > cited)
        bare += [name] * (not cited and re.search(r"\bthe contract\b", text) is not None)
    assert set(whole) == WHOLE.keys()
    assert bare == []


# Where code is named by its path within the package.
BASES = (ROOT, ROOT / "policyd")
NAMED = sorted(
    {
        (str(page.relative_to(ROOT)), name)
        for page in PAGES
        if page.parent in (ROOT, ROOT / "docs") and page.name != "CHANGELOG.md"
        for name in re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.[a-z]+)`", page.read_text())
    }
)


@pytest.mark.parametrize(("page", "name"), NAMED)
def test_file_that_a_page_names(page: str, name: str) -> None:
    """A file that a page names exists, from the top or within the package."""
    assert any((base / name).exists() for base in BASES), page


def test_packages() -> None:
    """The architecture page has a line for every package, and no others."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = text.partition("## Packages")[2].split("```")[1]
    listed = set(re.findall(r"^  ([a-z_0-9]+)/ ", tree, re.MULTILINE))
    assert listed == {file.parent.name for file in (ROOT / "policyd").glob("*/__init__.py")}


def test_which_way_imports_run() -> None:
    """The architecture page gives the layers that import-linter enforces."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (one["layers"] for one in linter["contracts"] if one["type"] == "layers")
    written = " > ".join(layer.replace("policyd.", "") for layer in layers)
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.partition("## Which way imports run")[2]
    assert " ".join(section.split("`")[1].split()) == written
