"""AdamW with its states in fp32, in bf16 or in 8 bits. Weights and arithmetic are always fp32.

bf16 keeps 8 significant bits. Rounded to nearest, a number stands still as long as a step moves it by less than 0.2 to
0.4 % of itself. With beta2 = 0.999 `exp_avg_sq` moves by 0.1 % of its distance to the squared gradient. So bf16 states
are rounded at random, to the upper neighbour with the probability that makes the mean right.

Shape suffix: P the rows of a parameter that are updated together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.optim.adamw import adamw

from harness.config.schema import UpdateConfig
from harness.errors import UserError

PIECE = 2**20  # numbers updated together: bounds the scratch memory
MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], config: UpdateConfig, *, stream: int = 0
) -> torch.optim.Optimizer:
    """The optimizer that `config.optimizer` names. Over ranks each has a `stream` of its own for what it draws.

    Raises UserError where it needs a package that is missing, ValueError for weights that are not fp32.
    """
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ValueError(f"trained weights have to be float32, not {parameter.dtype}: it loses small updates")
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.betas[0], config.betas[1]),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(parameters, fused=True, **options)  # no temporaries, unlike foreach
        case "adamw_bf16":
            return AdamWBf16(parameters, stream=stream, **options)
        case "adamw_8bit":
            return _adamw_8bit()(parameters, **options)
    raise ValueError(f"no optimizer {config.optimizer!r}")


def state_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """`<parameter>/<slot>` for every slot of every parameter that has been updated; no two share memory."""
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, parameter in parameters.items():
        for slot, value in optimizer.state.get(parameter, {}).items():
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            tensors[f"{name}/{slot}"] = tensor.clone() if tensor.data_ptr() in seen else tensor
            seen.add(tensor.data_ptr())
    return tensors


def load_state_tensors(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Put back what `state_tensors` gave, where and as this optimizer keeps it. It may keep `tensors` themselves."""
    ordered = (parameter for group in optimizer.param_groups for parameter in group["params"])
    index = {parameter: position for position, parameter in enumerate(ordered)}
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        name, slot = key.rsplit("/", 1)
        value = int(tensor) if tensor.dtype == torch.int64 else tensor  # bitsandbytes counts steps in an int
        state.setdefault(index[parameters[name]], {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def round_randomly(value: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """fp32 to one of its two neighbours in bf16, such that the mean over `draws` is `value`. Overwrites `value`.

    `draws`: int32, uniform in [0, 2^16). bf16 is the upper half of fp32's bits, so what carries out of the lower half
    rounds away from zero. Infinity and NaN stay.
    """
    value.view(torch.int32).add_(draws).bitwise_and_(-(2**16))
    return value.bfloat16()


class AdamWBf16(torch.optim.Optimizer):
    """torch's fused AdamW with moments in bf16, rounded at random: 4 bytes a weight. A piece of a parameter at a time.

    The draws follow from the stream, the step and the parameter's place alone: a resumed run draws the same, and the
    global random stream is left as it is.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        *,
        stream: int = 0,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._stream = stream

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ordered = ((group, parameter) for group in self.param_groups for parameter in group["params"])
        for index, (group, parameter) in enumerate(ordered):
            if parameter.grad is not None:
                self._update(parameter, group, index)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"state": {}})  # it would cast moments to the weight's dtype and device
        positions = (position for group in state_dict["param_groups"] for position in group["params"])
        parameters = (parameter for group in self.param_groups for parameter in group["params"])
        for position, parameter in zip(positions, parameters, strict=True):
            if state := state_dict["state"].get(position):
                moments = {moment: _kept(state[moment], parameter.device) for moment in MOMENTS}
                self.state[parameter] = {"step": state["step"].cpu().clone()} | moments

    def _update(self, parameter: torch.nn.Parameter, group: dict[str, Any], index: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state.update({moment: _kept(torch.zeros_like(parameter), parameter.device) for moment in MOMENTS})
        state["step"] += 1
        step = int(state["step"])
        num_parameters = sum(len(group["params"]) for group in self.param_groups)
        generator = torch.Generator(parameter.device).manual_seed((self._stream << 40) + step * num_parameters + index)
        assert parameter.grad is not None
        for weight_P, grad_P, *kept in _pieces(parameter, parameter.grad, *(state[moment] for moment in MOMENTS)):
            moments = [kept_P.float() for kept_P in kept]
            adamw(
                [weight_P],
                [grad_P],
                [moments[0]],
                [moments[1]],
                [],
                [torch.full((), step - 1.0, device=parameter.device)],  # it adds the 1 itself
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            draws_P = torch.empty_like(weight_P, dtype=torch.int32).random_(generator=generator)  # 31 random bits
            kept[0].copy_(round_randomly(moments[0], draws_P & 0xFFFF))
            kept[1].copy_(round_randomly(moments[1], draws_P >> 15))


def _kept(moment: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a complete moment of a parameter on `device`, as it is kept between steps."""
    return moment.to(device, torch.bfloat16, copy=True)


def _pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Views of the same rows of each, of at most PIECE numbers unless a single row has more."""
    rows = [torch.atleast_1d(tensor.detach()) for tensor in tensors]
    num_rows = max(1, PIECE * len(rows[0]) // max(1, rows[0].numel()))
    return zip(*(tensor.split(num_rows) for tensor in rows), strict=True)


def _adamw_8bit() -> type[torch.optim.Optimizer]:
    """bitsandbytes' AdamW: 256 numbers share a scale, https://arxiv.org/abs/2110.02861."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError(
            "update.optimizer=adamw_8bit needs bitsandbytes: pip install -e '.[optim]' in the checkout"
        ) from None
    return AdamW8bit
