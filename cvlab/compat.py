"""Import torchvision beside a CPU-only torch.

PyPI's torchvision for Linux is built against CUDA. Beside a CPU build of torch its C++ library
cannot be loaded, its operators are never declared, and `import torchvision` stops with
"operator torchvision::nms does not exist". The operators serve detection only; models,
transforms and datasets are Python. So we declare the two missing names, without a body, and
import again. Where torchvision imports by itself, nothing is done.
"""

import sys
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []  # a Library undoes its definitions when collected


def import_torchvision() -> ModuleType:
    """`import torchvision`, repaired when its compiled operators are missing.

    Raises:
        ImportError, RuntimeError: torchvision is missing or fails for any other reason.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # the half-imported modules of the failed attempt
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _libraries.append(library)
        import torchvision
    return torchvision
