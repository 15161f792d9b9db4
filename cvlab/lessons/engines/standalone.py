"""Classify pictures: python predict.py PICTURE ... Needs onnxruntime, NumPy and Pillow only."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def pixels(file, size):
    """A picture as the model takes it: turned as its EXIF data says, 16 bits made 8, shrunk."""
    image = ImageOps.exif_transpose(Image.open(file))
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    return np.asarray(image.convert("RGB").resize(size))


if __name__ == "__main__":
    here, pictures = Path(__file__).parent, sys.argv[1:]
    labels = (here / "labels.txt").read_text(encoding="utf-8").splitlines()
    session = onnxruntime.InferenceSession(here / "model.onnx")
    images = session.get_inputs()[0]
    size = images.shape[2], images.shape[1]
    batch = np.stack([pixels(file, size) for file in pictures])
    for file, p in zip(pictures, session.run(None, {images.name: batch})[0], strict=True):
        print(f"{file}: {labels[p.argmax()]}, {p.max():.1%}")
