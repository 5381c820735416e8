"""GPUs by name: what a plan needs to know of them. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    memory_gb: float
    """Its memory in 10^9 bytes, as the driver reports it: what is sold as 80 GB has 85.0, or 79.2 GiB."""
    bf16_tflops: float
    """Dense peak of its tensor cores, without sparsity."""
    bandwidth_tb: float
    """Bandwidth of its memory, 10^12 bytes a second."""
    fp8: bool = True
    """Whether its tensor cores multiply 8-bit floats, which FP8 weights need at full speed."""


GPUS = {
    "RTX4090-24GB": Gpu(25.4, 165.2, 1.01),
    "L40S-48GB": Gpu(47.8, 362.05, 0.86),
    "A100-40GB": Gpu(42.3, 312.0, 1.56, fp8=False),
    "A100-80GB": Gpu(84.9, 312.0, 2.04, fp8=False),
    "H100-80GB": Gpu(85.0, 989.4, 3.35),
    "H200-141GB": Gpu(150.1, 989.4, 4.8),
    "B200-180GB": Gpu(191.5, 2250.0, 8.0),
}
"""Speeds are those of NVIDIA's data sheets (of the SXM form where there is one), memory what torch reports of them,
rounded."""
