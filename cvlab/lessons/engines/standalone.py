"""Classify pictures: python predict.py PICTURE ... Needs onnxruntime, NumPy and Pillow only."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

if __name__ == "__main__":
    here, pictures = Path(__file__).parent, sys.argv[1:]
    labels = (here / "labels.txt").read_text().splitlines()
    session = onnxruntime.InferenceSession(here / "model.onnx")
    images = session.get_inputs()[0]
    size = images.shape[2], images.shape[1]
    pixels = [np.asarray(Image.open(file).convert("RGB").resize(size)) for file in pictures]
    answers = session.run(None, {images.name: np.stack(pixels)})[0]
    for file, p in zip(pictures, answers, strict=True):
        print(f"{file}: {labels[p.argmax()]}, {p.max():.1%}")
