"""Values that are not finite, for JSON, which has neither NaN nor infinities."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any


def finite_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with NaN as None, and infinities as None too: `infinite` then has {dotted name: "inf" or "-inf"}.

    >>> finite_values({"kl": {"mean": float("inf"), "max": float("nan")}, "rows": 2})
    {'kl': {'mean': None, 'max': None}, 'rows': 2, 'infinite': {'kl.mean': 'inf'}}
    """
    infinite: dict[str, str] = {}

    def without(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {key: without(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [without(item, f"{name}.{at}") for at, item in enumerate(value)]
        if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
            number = float(value)
            if math.isinf(number):
                infinite[name] = "inf" if number > 0 else "-inf"
            return number if math.isfinite(number) else None
        return value

    found = {key: without(value, str(key)) for key, value in values.items()}
    return found | ({"infinite": infinite} if infinite else {})
