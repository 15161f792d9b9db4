"""Widgets: each lets the reader feel one trade-off. A notebook says the same without them."""

from collections.abc import Callable, Sequence

import ipywidgets as widgets
import numpy as np

from cvlab import optimizers, plots
from cvlab.data import ImageData


def browse(data: ImageData) -> widgets.Widget:
    """Pick a class and a page, see its images."""
    name = widgets.Dropdown(options=data.classes, description="class")
    page = widgets.IntSlider(min=1, max=50, description="page", continuous_update=False)

    def draw(name: str, page: int):
        members = np.flatnonzero(data.train.labels.numpy() == data.classes.index(name))
        chosen = np.roll(members, -24 * (page - 1))[:24]
        figure, axes = plots.canvas(name, 8, 3, size=(7, 2.9))
        for axis, index in zip(axes.flat, chosen, strict=False):
            axis.imshow(data.train.images[index].permute(1, 2, 0).numpy())
        for axis in axes.flat:
            axis.axis("off")
        return figure

    return _interactive(draw, [name, page], {"name": name, "page": page})


def ravine(names: Sequence[str] = ("momentum", "Nesterov", "SGD", "Adagrad", "Adam")):
    """Choose an optimizer, its rate and its momentum; see where 60 steps lead on the ravine."""
    name = widgets.Dropdown(options=names, description="optimizer")
    rate = widgets.FloatLogSlider(
        value=0.03, min=-3, max=0.5, step=0.05, description="rate", continuous_update=False
    )
    momentum = widgets.FloatSlider(
        value=0.9, min=0, max=0.99, step=0.01, description="momentum", continuous_update=False
    )

    def draw(name: str, rate: float, momentum: float):
        walk = optimizers.path(name, rate, momentum=momentum)
        end = walk[-1]
        lost = np.isnan(end).any()
        where = "left for infinity" if lost else f"{np.hypot(*end):.3f} from the minimum"
        title = f"{name}, rate {rate:.3g}: after 60 steps {where}"
        figure = plots.ravine_paths({"": walk}, optimizers.ravine, title)
        figure.set_size_inches(7.5, 3.2)
        return figure

    controls = [name, rate, momentum]
    return _interactive(draw, controls, {"name": name, "rate": rate, "momentum": momentum})


def _interactive(draw: Callable, controls: list, names: dict) -> widgets.Widget:
    """Controls over an output that `draw` fills anew whenever one of them moves."""
    import matplotlib.pyplot as plt
    from IPython.display import display

    from cvlab.run import png

    def redraw(**values) -> None:
        figure = draw(**values)
        plt.close(figure)
        display({"image/png": png(figure), "text/plain": ""}, raw=True)

    output = widgets.interactive_output(redraw, names)
    return widgets.VBox([widgets.HBox(controls), output])
