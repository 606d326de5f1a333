"""What must be equal before sums are merged."""

from __future__ import annotations

from typing import Any

from bigvocab.errors import BigvocabError


def refuse_difference(mine: dict[str, Any], theirs: dict[str, Any], names: tuple[str, str]) -> None:
    """Raise for the first option that differs; `names` of where they come from."""
    for name in (*mine, *theirs):
        a, b = mine.get(name), theirs.get(name)
        if a != b:
            a, b, name = _deepest(a, b, name)
            raise BigvocabError(f"{names[1]}: {name} is {b!r}, but {a!r} in {names[0]}; expected the same")


def with_told(mine: Any, theirs: Any) -> Any:
    """Options of what has seen no rows, with what rows of the others told: where hidden states of a model are from."""
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        return mine
    return {
        name: theirs.get(name) if name == "hidden_states" and value is None else with_told(value, theirs.get(name))
        for name, value in mine.items()
    }


def _deepest(a: Any, b: Any, name: str) -> tuple[Any, Any, str]:
    """The first thing inside that differs."""
    if isinstance(a, dict) and isinstance(b, dict):
        key = next(key for key in (*a, *b) if a.get(key) != b.get(key))
        return _deepest(a.get(key), b.get(key), f"{name} {key}")
    return a, b, name


def refuse_same_draws(options: dict[str, Any], mine: dict[str, int], theirs: dict[str, int]) -> None:
    """Raise if both counted their rows from 0 and drew by them: rows of the same number had the same candidates.

    `options` are the same in both, `mine` and `theirs` the counts of rows.
    """
    draws = options["draws"]
    each_draws = draws and "candidates" not in draws and draws["sampler"] != "all"
    if each_draws and all(any(counts.values()) for counts in (mine, theirs)):
        raise BigvocabError(
            "merge: both evaluators drew candidates for rows 0, 1, ..., expected one evaluator for all rows, "
            "shards of one job over files, or one draw for all rows (candidates)"
        )
