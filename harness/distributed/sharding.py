"""A student whose weights, gradients and moments are cut over the ranks: FSDP2, full shard.

`torch.distributed.fsdp.fully_shard` is used directly. accelerate's `prepare` takes a model whose own forward ends in
its loss. It would wrap and gather the head together with a forward pass that the update (`harness.training.update`)
does not make, and sum its gradient once a micro-batch. Here every decoder layer is a group of its own, gathered for its
pass and summed after it. Embedding, head (tied or not), vision tower and norms are the outer group. That group is
gathered once for a command, adds its gradient up in place as one process does, and is reduced once.

Optimizers work on the local shards, so that each of `harness.training.optimizer` is the same code as in one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard

from harness.errors import UserError
from harness.models.forward import LanguageModel


class ShardedModel:
    """Cuts `student` in place. With a `compute_dtype` layers are gathered in it, and their gradients summed in fp32."""

    def __init__(self, student: LanguageModel, mesh: DeviceMesh) -> None:
        module = student.module
        layers = getattr(module.get_decoder(), "layers", None)
        if layers is None:
            raise UserError(
                f"{type(module).__name__} has no list of decoder layers to cut over ranks: set cluster=local"
            )
        is_mixed = student.compute_dtype != module.dtype
        # Residual streams stay fp32, as under autocast in one process.
        policy = MixedPrecisionPolicy(
            param_dtype=student.compute_dtype if is_mixed else None,
            reduce_dtype=torch.float32 if is_mixed else None,
            cast_forward_inputs=False,
        )
        self._module = module
        self._mesh = mesh
        inner = {id(p) for layer in layers for p in layer.parameters()}
        self._outer = [name for name, p in module.named_parameters() if id(p) not in inner]
        for layer in layers:
            _as_sums(fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=True))
        root = _as_sums(fully_shard(module, mesh=mesh, reshard_after_forward=False))
        root.set_requires_gradient_sync(False, recurse=False)  # `gathered` reduces it
        root.set_reshard_after_backward(False, recurse=False)
        self._root = root
        # The only pass through the outermost module: it makes that the root of the others.
        cast = torch.autocast(student.device.type, dtype=student.compute_dtype, enabled=is_mixed)
        with torch.no_grad(), cast:
            module(input_ids=torch.zeros(1, 1, dtype=torch.long, device=student.device))
        root.reshard()
        self.local: dict[str, torch.nn.Parameter] = {
            name: torch.nn.Parameter(p.detach().to_local(), requires_grad=p.requires_grad)  # type: ignore[attr-defined]
            for name, p in module.named_parameters()
        }
        """This rank's rows of every parameter, by name; they share memory with the model's."""

    @contextmanager
    def gathered(self, *, gradients: bool = False) -> Iterator[None]:
        """The complete outer group on every rank. With `gradients`, `local` has after this block the sums over ranks of
        what backward passes have left in it; the model is left with none, whatever happens."""
        self._root.unshard()
        outer: dict[str, torch.Tensor | None] | None = None
        try:
            yield
            outer = {name: p.grad for name, p in self._outer_parameters().items() if p.requires_grad}
        finally:
            for parameter in self._outer_parameters().values():
                parameter.grad = None
            self._root.reshard()
            if outer is None:
                for parameter in self._module.parameters():
                    parameter.grad = None
        if gradients:
            self._reduce(outer)
            for name, parameter in self._module.named_parameters():
                gradient, parameter.grad = parameter.grad, None
                if gradient is not None:
                    assert isinstance(gradient, DTensor)
                    self.local[name].grad = gradient.to_local()

    def whole_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight by name, gathered one at a time. All ranks have to take all of them, in order."""
        for name, parameter in self._module.named_parameters():
            yield name, parameter.detach().full_tensor()  # type: ignore[attr-defined]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the complete parameters."""
        return {name: tuple(p.shape) for name, p in self._module.named_parameters()}

    def _outer_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: self._module.get_parameter(name) for name in self._outer}

    def _reduce(self, gradients: dict[str, torch.Tensor | None]) -> None:
        """A parameter that no rank has used has no gradient, so that the optimizer leaves it as one process does."""
        used = torch.tensor([gradient is not None for gradient in gradients.values()], dtype=torch.int32)
        dist.all_reduce(used)
        for name, is_used in zip(list(gradients), used.tolist(), strict=True):
            gradient = gradients.pop(name)
            if is_used:
                parameter = self._module.get_parameter(name)
                if gradient is None:
                    gradient = torch.zeros(parameter.shape, dtype=parameter.dtype, device=parameter.device)
                partial = DTensor.from_local(gradient, self._mesh, [Partial()], run_check=False)
                parameter.grad = partial.redistribute(placements=[Shard(0)])


def _as_sums(module: FSDPModule) -> FSDPModule:
    """Gradients are summed over ranks, not averaged: each is already divided by the complete batch's denominator."""
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)
    return module
