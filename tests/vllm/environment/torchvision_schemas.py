"""Lets torchvision's Python part load beside a CPU build of torch, whose compiled operators it cannot load.

`make test-vllm` puts this file into its environment, where a .pth file imports it at every start of Python: vLLM's
models import torchvision in processes of their own. Only the schemas of two operators are needed, never the operators.
"""

import sys
from importlib.abc import MetaPathFinder

SCHEMAS = ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
           "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # fmt: skip
libraries = []  # a schema lives as long as its library


class BeforeTorchvision(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for schema in SCHEMAS:
                library.define(schema)
            libraries.append(library)
        return None


sys.meta_path.insert(0, BeforeTorchvision())
