"""Imported last by the process that ranks are forked from: it does once what each rank would do again."""

import gc
import io

from matplotlib.figure import Figure


def draw() -> None:
    """Draw a figure, which finds fonts and loads what draws."""
    figure = Figure(layout="constrained")
    figure.add_subplot().plot([1, 2], [1, 2], label="line")
    figure.axes[0].legend()
    figure.savefig(io.BytesIO())


draw()
gc.collect()
gc.freeze()  # a collection in a rank would visit, and by that copy, all that was imported
