"""Plots, where matplotlib is installed."""

from __future__ import annotations

from pathlib import Path

import polars as pl


def plot_monthly(days: pl.DataFrame, value: str, title: str, to: Path) -> bool:
    """Writes a bar chart of a value per month as PNG; False where matplotlib is not installed.

    Args:
        days: `day` (date) and the value.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    months = days.group_by(month=pl.col("day").dt.month_start()).agg(pl.col(value).sum()).sort("month")
    labels = [m.strftime("%b %Y") if m.month in (1, 7) else m.strftime("%b") for m in months["month"]]
    figure, axes = plt.subplots(figsize=(10, 4.2), dpi=110)
    axes.bar(range(len(labels)), months[value].to_list(), color="#2a6f97")
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1000:,.0f}k"))
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.tight_layout()
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to)
    plt.close(figure)
    return True
