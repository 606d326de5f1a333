"""Figures in the form in which llama.cpp prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def format_table(figures: Mapping[str, Any]) -> str:
    """The table as llama.cpp prints it, but for the running lines; of 100 rows or more.

    Args:
        figures: the block `llama_cpp` of a report.
    """

    def line(name: str, key: str, digits: int, width: int = 0, unit: str = "") -> str:
        figure = figures[key]
        error = f" ± {figure['error']:{width}.{digits}f}" if "error" in figure else ""
        return f"{name}{figure['value']:{width}.{digits}f}{error}{unit}"

    rows = [
        "====== Perplexity statistics ======",
        line("Mean PPL(Q)                   : ", "mean_ppl_q", 6, 10),
        line("Mean PPL(base)                : ", "mean_ppl_base", 6, 10),
        f"Cor(ln(PPL(Q)), ln(PPL(base))): {figures['cor']['value']:6.2f}%",
        line("Mean ln(PPL(Q)/PPL(base))     : ", "mean_ln_ratio", 6, 10),
        line("Mean PPL(Q)/PPL(base)         : ", "mean_ratio", 6, 10),
        line("Mean PPL(Q)-PPL(base)         : ", "mean_difference", 6, 10),
        "",
        "====== KL divergence statistics ======",
        line("Mean    KLD: ", "mean_kld", 6, 10),
        *_lines(figures["kld"], "KLD", 6, ""),
        "",
        "====== Token probability statistics ======",
        f"Mean    Δp: {figures['mean_dp']['value']:6.3f} ± {figures['mean_dp']['error']:5.3f} %",
        *_lines(figures["dp"], "Δp", 3, "%"),
        f"RMS Δp    : {figures['rms_dp']['value']:6.3f} ± {figures['rms_dp']['error']:5.3f} %",
        f"Same top p: {figures['same_top_p']['value']:6.3f} ± {figures['same_top_p']['error']:5.3f} %",
    ]
    return "\n".join(rows) + "\n"


def _lines(spread: Mapping[str, float], what: str, digits: int, unit: str) -> list[str]:
    names = {"max": "Maximum", "50": "Median ", "min": "Minimum"}
    width = 10 if digits == 6 else 6
    return [
        f"{names.get(key, f'{float(key):4.1f}%  ' if key not in names else '')} {what}: {value:{width}.{digits}f}{unit}"
        for key, value in spread.items()
    ]
