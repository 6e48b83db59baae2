"""The site: `sphinx-build -W -b html docs site`. What the program knows of itself is written into `docs/_made` when it is built."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import repalign

DOCS = Path(__file__).parent
MADE = DOCS / "_made"

project = html_title = "repalign"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 900
autodoc_typehints = "none"
autodoc_member_order = "bysource"
default_role = "literal"  # docstrings use single backticks for code
html_theme = "pydata_sphinx_theme"
html_theme_options = {
    "navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"], "show_nav_level": 1, "header_links_before_dropdown": 7,
}  # fmt: skip
html_show_sourcelink = False
html_static_path, html_css_files = ["_static"], ["site.css"]

# Pages of the repository's root that are part of the site, by the page that includes them.
ROOT_PAGES = {
    "CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md", "NUMBERS.md": "numbers.md", "README.md": "index.md",
}  # fmt: skip


def study_page() -> str:
    """Every field of a study file, block by block, from its schema."""
    from repalign.study import schema

    whole = schema()
    lines = [
        "# Study file", "",
        "A study file says what is compared, how, and what is drawn. Only `models` are needed; a data set too, unless",
        "all models are files of features. [Write a study](../study.md) shows the fields at work. Editors complete and check them",
        "by the {download}`JSON schema <study.schema.json>`.", "",
    ]  # fmt: skip
    blocks = [("The study", whole), *((name.removesuffix("Config"), block) for name, block in sorted(whole["$defs"].items()))]
    for title, block in blocks:
        lines += [f"## {title}", "", block.get("description", ""), "", "| field | takes | default | |", "| --- | --- | --- | --- |"]
        for name, field in block["properties"].items():
            default = field.get("default")
            given = f"`{json.dumps(default)}`" if default is not None and not isinstance(default, (dict, list)) else ""
            given = "needed" if name in block.get("required", ()) else given
            lines.append(f"| `{name}` | {takes(field)} | {given} | {field['description']} |".replace("{", "&#123;"))
        lines.append("")
    return "\n".join(lines)


def takes(field: dict[str, Any]) -> str:
    """What a field may be, in words, with links to blocks."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2].removesuffix("Config")
        return f"[{name}](#{name.lower()})"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if several := field.get("anyOf") or field.get("oneOf"):
        return ", or ".join(dict.fromkeys(takes(one) for one in several if one.get("type") != "null"))
    kind = field.get("type")
    if kind == "array":
        return f"list of {takes(field['items'])}" if field.get("items") else "list"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "object": "mapping"}
    return words.get(str(kind), "anything")


def command_page() -> str:
    """Every command with its options, from the command line itself."""
    import typer
    from typer.cli import get_docs_for_click

    from repalign.cli import app

    group: Any = typer.main.get_command(app)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group), name="repalign")
    text = re.sub(r"^(#+) `(.*)`$", r"\1 \2", text, flags=re.M).replace("# repalign\n", "# Command line\n", 1)
    return text.replace("{", "&#123;")


def glossary() -> list[dict[str, str]]:
    """The words that the report explains, and those of the pages alone."""
    with (Path(repalign.__file__).parent / "report/glossary.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def glossary_page() -> str:
    entries = "\n\n".join(f"{row['term']}\n  {row['meaning']}" for row in sorted(glossary(), key=lambda row: row["term"].lower()))
    return f"# Glossary\n\nEvery word is linked where a page first uses it.\n\n:::{{glossary}}\n{entries}\n:::\n"


def link_terms(_: object, name: str, source: list[str]) -> None:
    """The first use of a word of the glossary in the text of a page leads there."""
    if name.startswith(("_made", "python", "changes", "numbers")) or not source[0]:
        return
    forms = [(form, row["term"]) for row in glossary() for form in (row["term"], *filter(None, row["forms"].split("|")))]
    words, exact = {form.lower(): term for form, term in forms}, {form for form, _ in forms}
    pattern = re.compile(rf"(?<![\w`-])({'|'.join(map(re.escape, sorted(words, key=len, reverse=True)))})(?![\w`-])", re.I)
    # What is no text: front matter, code, headings, tables, pictures, and within a line links and code.
    blocks = r"\A---\n.*?\n---\n|^ *```.*?^ *```$|^:::.*?^:::$|^#[^\n]*$|^\|[^\n]*$"
    parts = re.split(rf"({blocks}|!?\[[^]]*\]\([^)]*\)|`[^`]*`|\*\*[^*]*\*\*)", source[0], flags=re.S | re.M)
    seen: set[str] = set()

    def link(found: re.Match[str]) -> str:
        term = words[found[0].lower()]
        if term in seen or (found[0] not in exact and found[0].lower() not in exact):  # "by" is no BY
            return found[0]
        seen.add(term)
        return f"{{term}}`{found[0]} <{term}>`"

    parts[::2] = [pattern.sub(link, part) for part in parts[::2]]
    source[0] = "".join(parts)


def make_pages(*_: object) -> None:
    from repalign.study import schema

    MADE.mkdir(exist_ok=True)
    pages = {
        "study_file.md": study_page(), "command_line.md": command_page(), "glossary.md": glossary_page(),
        "study.schema.json": json.dumps(schema(), indent=1),
    }  # fmt: skip
    for name, text in pages.items():
        if not (MADE / name).is_file() or (MADE / name).read_text("utf-8") != text:
            (MADE / name).write_text(text, "utf-8")


def link_root_pages(_: object, name: str, source: list[str]) -> None:
    """Links to pages of the repository's root go to the pages that include them."""
    for there, here in ROOT_PAGES.items():
        source[0] = re.sub(rf"\]\((?:\.\./)+{re.escape(there)}(#[^)]*)?\)", rf"]({'../' * name.count('/')}{here}\1)", source[0])


def include_root_page(_: object, __: Path, ___: str, content: list[str]) -> None:
    for there, here in ROOT_PAGES.items():
        content[0] = content[0].replace(f"]({there})", f"](docs/{here})")


_NAMED = re.compile(r"([\w*]+(?:, [\w*]+)*) : (?=\S)")


def as_restructured_text(*about: Any) -> None:
    """Docstrings are plain text: what they say of names gets its header, and signs that Sphinx would read get a backslash."""
    lines: list[str] = about[-1]
    first = next((i for i, line in enumerate(lines) if _NAMED.match(line)), None)
    if first is not None and not any(line.startswith("---") for line in lines):
        ends = (i for i in range(first, len(lines)) if not lines[i] and i + 1 < len(lines) and not _NAMED.match(lines[i + 1]))
        end = next(ends, len(lines))
        rest = lines[end:] and ["", "Notes", "-----", *lines[end + 1 :]]
        lines[:] = [*lines[:first], "", "Parameters", "----------", *lines[first:end], *rest]
    text = "\n".join(_NAMED.sub(r"\1\n    ", line) for line in lines)  # after the colon stands what a name means, not a type
    parts = re.split(r"(`[^`]*`|^ *(?:>>>|\.\.\. ).*$)", text, flags=re.M)
    parts[::2] = [re.sub(r"\||(?<=\w)_(?=\W|$)", r"\\\g<0>", part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before napoleon
    app.connect("builder-inited", make_pages)
    app.connect("source-read", link_root_pages)
    app.connect("source-read", link_terms)
    app.connect("include-read", include_root_page)
