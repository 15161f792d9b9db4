"""What the server that processes are forked from imports once, so that none of them has to.

See `cvlab.bench.context`. torchvision and timm alone take two seconds.
"""

import onnxruntime  # noqa: F401

from cvlab.zoo import libraries

libraries()
