"""What plots have in common: their files and their axes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dataset import whole_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG of `figure`. Raises InputError when the file cannot be written."""
    whole_files.write_atomically(path, lambda file: figure.savefig(file, format="png"))


def style_axes(axes: Axes) -> None:
    """A pale grid behind what is plotted, and no frame above and on the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
