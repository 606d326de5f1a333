"""Pictures of matplotlib as SVG that lives in a page: its colours are the page's, its texts are read aloud."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from bigvocab.reports.page.shown import Html

# Colours that matplotlib is given, and what they become: the page decides, in light, dark and print.
INK, MUTED, GRID, PAPER = "#000001", "#000002", "#000003", "#000004"
SERIES = tuple(f"#0000{i}0" for i in range(1, 8))
_STYLES = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"} | {
    color: f"var(--c{i})" for i, color in enumerate(SERIES, 1)
}
_COLOR = re.compile("|".join(_STYLES))
_FONT = re.compile(r"font: (?:[a-z]+ )*([\d.]+px) [^;]*")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


def inline(drawn: str, key: str, title: str, description: str, texts: Mapping[str, str]) -> Html:
    """The SVG of a picture, to stand in HTML.

    `key` makes its ids unique in the page. `texts` are put in place of the placeholders that were drawn, so that names
    from data never pass through matplotlib, which would read formulas in them and look for glyphs.
    """
    from xml.etree import ElementTree

    root: Any = ElementTree.fromstring(drawn)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}style", f"{_SVG}metadata"):
                parent.remove(child)
    used = _used_ids(root)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        _restyle(element, key, used)
        if element.text in texts:
            element.text = texts[element.text]
            element.set("class", "name")
    width, height = root.attrib["viewBox"].split()[2:]
    _flatten(root)
    inner = "".join(ElementTree.tostring(child, encoding="unicode").rstrip() for child in root)
    return Html(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-labelledby="{key}-title {key}-desc"><title id="{key}-title">{html.escape(title)}</title>'
        f'<desc id="{key}-desc">{html.escape(description)}</desc>{inner}</svg>'
    )


def _used_ids(root: Any) -> set[str]:
    used = set()
    for element in root.iter():
        for value in element.attrib.values():
            used.update(_REFERENCE.findall(value))
        if _LINK in element.attrib:
            used.add(element.attrib[_LINK].removeprefix("#"))
    return used


def _restyle(element: Any, key: str, used: set[str]) -> None:
    """Ids of this picture alone, colours of the page, the page's font."""
    found = dict(element.attrib)
    element.attrib.clear()
    for name, value in found.items():
        if name == "id":
            if value in used:
                element.set("id", f"{key}-{value}")
        elif name == _LINK:
            element.set("href", f"#{key}-{value.removeprefix('#')}")
        else:
            value = _REFERENCE.sub(rf"url(#{key}-\1)", value)
            value = _COLOR.sub(lambda match: _STYLES[match.group()], value)
            element.set(name, _FONT.sub(r"font-size: \1", value))


def _flatten(element: Any) -> None:
    """Groups without attributes, and the line ends between elements, are only bytes."""
    children = []
    for child in element:
        _flatten(child)
        child.tail = None
        children += list(child) if child.tag == "g" and not child.attrib else [child]
    for child in list(element):
        element.remove(child)
    element.extend(children)
    if element.text and not element.text.strip():
        element.text = None
