"""The bytes that everyone trains on: Fashion-MNIST where it is installed, else images of noise of its shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.architectures import PIXELS


def stored(path: Path) -> str:
    """Write the training images, and beside them the test images, as bytes, (N, 784); say what they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    import ppvae
    from ppvae.errors import MissingFileError

    try:
        data = ppvae.data.load("fashion-mnist")
    except MissingFileError:
        np.save(path, synthetic())
        np.save(test_path(path), synthetic(10_000, seed=1))
        return "NOISE in the shape of Fashion-MNIST, which is not installed here (apt install dataset-fashion-mnist)"
    np.save(path, np.asarray(data.train.raw, dtype=np.uint8))
    np.save(test_path(path), np.asarray(data.test.raw, dtype=np.uint8))
    return f"Fashion-MNIST, {len(data.train):,} training images"


def test_path(path: Path) -> Path:
    """Where the test images lie beside the training images."""
    return path.with_name(f"test-{path.name}")


def synthetic(num_images: int = 55_000, seed: int = 0) -> np.ndarray:
    """Blurred noise with many black pixels, as pictures of clothes have them, (N, 784) bytes."""
    noise = np.random.default_rng(seed).normal(size=(num_images, 28, 28)).astype(np.float32)
    smooth = sum(np.roll(noise, shift, axis) for axis in (1, 2) for shift in range(-3, 4)) / 14**0.5
    return np.clip(128 * smooth, 0, 255).astype(np.uint8).reshape(num_images, PIXELS)
