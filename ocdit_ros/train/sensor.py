# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""What a camera does to light: vignetting, white balance, exposure, blur, noise, tone curve, sharpening, JPEG."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Random = np.random.Generator
Linear = NDArray[np.float32]
Image8 = NDArray[np.uint8]

_DECODE = np.arange(256, dtype=np.float64) / 255
_TO_LINEAR: Linear = np.where(_DECODE <= 0.04045, _DECODE / 12.92, ((_DECODE + 0.055) / 1.055) ** 2.4).astype(
    np.float32
)
_STEPS = 4096
_ENCODE = np.linspace(0, 1, _STEPS + 1)
_TO_SRGB: Linear = np.where(_ENCODE <= 0.0031308, 12.92 * _ENCODE, 1.055 * _ENCODE ** (1 / 2.4) - 0.055).astype(
    np.float32
)
_LUMA: Linear = np.array([0.299, 0.587, 0.114], np.float32)  # of sRGB values, ITU-R BT.601


def to_linear(image: Image8) -> Linear:
    """SRGB uint8 to linear light 0..1 (IEC 61966-2-1)."""
    return _TO_LINEAR[image]


def to_srgb(linear: Linear) -> Linear:
    """Linear light to sRGB values 0..1 (table of 4096 steps), clipped."""
    return _TO_SRGB[(linear.clip(0, 1) * _STEPS + 0.5).astype(np.int32)]


@dataclass(frozen=True)
class Sensor:
    """One camera in one moment. Defaults change nothing but the tone curve."""

    exposure: float = 1.0  # gain on linear light
    white_balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    vignetting: float = 0.0  # loss of light in the corners, 0..1
    blur: float = 0.0  # Gaussian sigma of the optics, pixels
    motion: tuple[float, float] = (0.0, 0.0)  # motion blur, pixels along x and y
    shot_noise: float = 0.0  # sigma at linear 1.0, grows with the root of light
    read_noise: float = 0.0  # sigma in linear light
    contrast: float = 1.0  # exponent around middle grey, on sRGB values
    saturation: float = 1.0
    sharpening: float = 0.0  # unsharp mask strength
    shoulder: float = 0.8  # linear light from which highlights are compressed
    jpeg: int = 95  # quality


def draw_sensor(r: Random) -> Sensor:
    """A camera as they are met: mostly fair pictures, some dark, blurred, noisy or badly balanced."""
    poor = r.random() < 0.25
    noise = float(np.exp(r.uniform(np.log(0.003), np.log(0.06 if poor else 0.02))))
    warm = r.normal(0, 0.07)
    moving = r.random() < 0.12
    angle, length = r.uniform(0, np.pi), r.uniform(1, 4) if moving else 0.0
    return Sensor(
        white_balance=(float(np.exp(warm)), float(np.exp(r.normal(0, 0.02))), float(np.exp(-warm))),
        vignetting=float(r.choice([0.0, r.uniform(0.05, 0.5)])),
        blur=float(r.uniform(0.2, 0.6) if not poor else r.uniform(0.4, 1.2)),
        motion=(float(length * np.cos(angle)), float(length * np.sin(angle))),
        shot_noise=noise,
        read_noise=float(noise * r.uniform(0.1, 0.5)),
        contrast=float(np.exp(r.normal(0.08, 0.17))),
        saturation=float(np.exp(r.normal(-0.05, 0.15))),
        sharpening=float(r.choice([0.0, r.uniform(0.2, 1.2)])),
        shoulder=float(r.uniform(0.5, 0.9)),
        jpeg=int(r.integers(55, 97)),
    )


def expose(linear: Linear, sensor: Sensor, r: Random) -> Image8:
    """Linear light [H, W, 3] to an sRGB picture uint8, without JPEG."""
    height, width = linear.shape[:2]
    image = linear * np.asarray(sensor.white_balance, np.float32) * np.float32(sensor.exposure)
    if sensor.vignetting > 0:
        y = ((np.arange(height, dtype=np.float32) + 0.5) / height * 2 - 1) ** 2
        x = ((np.arange(width, dtype=np.float32) + 0.5) / width * 2 - 1) ** 2
        image *= (1 - np.float32(sensor.vignetting) * ((y[:, None] + x) / 2) ** 1.5)[..., None]
    if sensor.blur > 0.15:
        image = cv2.GaussianBlur(image, (0, 0), sensor.blur)
    dx, dy = sensor.motion
    if abs(dx) + abs(dy) > 0.5:
        size = 2 * int(np.ceil(max(abs(dx), abs(dy)) / 2)) + 1
        kernel = np.zeros((size, size), np.float32)
        half = size // 2
        for t in np.linspace(-0.5, 0.5, 4 * size):
            kernel[round(half + t * dy), round(half + t * dx)] += 1
        image = cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)
    if sensor.shot_noise > 0 or sensor.read_noise > 0:
        sigma = np.sqrt(image.clip(0, 4) * np.float32(sensor.shot_noise**2) + np.float32(sensor.read_noise**2))
        image += sigma * r.standard_normal(image.shape, dtype=np.float32)
    knee = np.float32(sensor.shoulder)
    room = 1 - knee
    over = image > knee
    if over.any():
        image[over] = knee + room * np.tanh((image[over] - knee) / room)
    return _finish(to_srgb(image), sensor)


def _finish(values: Linear, sensor: Sensor) -> Image8:
    if sensor.saturation != 1.0:
        grey: Linear = (values @ _LUMA).astype(np.float32)
        values = grey[..., None] + (values - grey[..., None]) * np.float32(sensor.saturation)
    if sensor.contrast != 1.0:
        values = np.float32(0.5) + (values - np.float32(0.5)) * np.float32(sensor.contrast)
    if sensor.sharpening > 0:
        values += np.float32(sensor.sharpening) * (values - cv2.GaussianBlur(values, (0, 0), 1.0))
    return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def encode_jpeg(image: Image8, quality: int) -> bytes:
    """JPEG file of an rgb picture."""
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    if not done:
        raise ValueError("the picture cannot be encoded as JPEG")
    return bytes(data)


def augment(image: Image8, r: Random, strength: float = 1.0) -> Image8:
    """A finished picture as another camera might have taken it, uint8 [H, W, 3] to the same.

    For training on stored pictures: exposure, balance, contrast, saturation, blur, noise, sharpening and JPEG change;
    ``strength`` scales how far. Geometry stays, so labels remain valid.
    """
    drawn = draw_sensor(r)

    def power(value: float) -> float:
        return float(value**strength)

    sensor = Sensor(
        exposure=power(float(np.exp(r.normal(0, 0.3)))),
        white_balance=(power(drawn.white_balance[0]), power(drawn.white_balance[1]), power(drawn.white_balance[2])),
        vignetting=drawn.vignetting * min(strength, 1.0) * 0.6,
        blur=drawn.blur * strength * float(r.random() < 0.4),
        motion=(drawn.motion[0] * strength, drawn.motion[1] * strength),
        shot_noise=drawn.shot_noise * strength,
        read_noise=drawn.read_noise * strength,
        contrast=power(drawn.contrast),
        saturation=power(drawn.saturation),
        sharpening=drawn.sharpening * strength * 0.6,
        shoulder=0.95,
        jpeg=drawn.jpeg,
    )
    result = expose(to_linear(image), sensor, r)
    if r.random() < 0.5:
        buffer = np.frombuffer(encode_jpeg(result, sensor.jpeg), np.uint8)
        decoded = cv2.imdecode(buffer, cv2.IMREAD_COLOR)
        if decoded is None:
            raise ValueError("the picture cannot be read back from JPEG")
        result = np.ascontiguousarray(decoded[..., ::-1])
    return result
