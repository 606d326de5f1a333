"""Numbers in the form in which llama.cpp prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def format_table(values: Mapping[str, Any]) -> str:
    """The table as llama.cpp prints it, except the running lines; of 100 rows or more.

    Args:
        values: the block `llama_cpp` of a report.
    """

    def line(name: str, key: str, digits: int, width: int = 0, unit: str = "") -> str:
        one = values[key]
        error = f" ± {one['error']:{width}.{digits}f}" if "error" in one else ""
        return f"{name}{one['value']:{width}.{digits}f}{error}{unit}"

    rows = [
        "====== Perplexity statistics ======",
        line("Mean PPL(Q)                   : ", "mean_ppl_q", 6, 10),
        line("Mean PPL(base)                : ", "mean_ppl_base", 6, 10),
        f"Cor(ln(PPL(Q)), ln(PPL(base))): {values['cor']['value']:6.2f}%",
        line("Mean ln(PPL(Q)/PPL(base))     : ", "mean_ln_ratio", 6, 10),
        line("Mean PPL(Q)/PPL(base)         : ", "mean_ratio", 6, 10),
        line("Mean PPL(Q)-PPL(base)         : ", "mean_difference", 6, 10),
        "",
        "====== KL divergence statistics ======",
        line("Mean    KLD: ", "mean_kld", 6, 10),
        *_lines(values["kld"], "KLD", 6, ""),
        "",
        "====== Token probability statistics ======",
        f"Mean    Δp: {values['mean_dp']['value']:6.3f} ± {values['mean_dp']['error']:5.3f} %",
        *_lines(values["dp"], "Δp", 3, "%"),
        f"RMS Δp    : {values['rms_dp']['value']:6.3f} ± {values['rms_dp']['error']:5.3f} %",
        f"Same top p: {values['same_top_p']['value']:6.3f} ± {values['same_top_p']['error']:5.3f} %",
    ]
    return "\n".join(rows) + "\n"


def _lines(spread: Mapping[str, float], what: str, digits: int, unit: str) -> list[str]:
    names = {"max": "Maximum", "50": "Median ", "min": "Minimum"}
    width = 10 if digits == 6 else 6
    return [
        f"{names.get(key, f'{float(key):4.1f}%  ' if key not in names else '')} {what}: {value:{width}.{digits}f}{unit}"
        for key, value in spread.items()
    ]
