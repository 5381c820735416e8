"""GRPO (Alg. 4): plain groups, group advantages, clipped surrogate, no KL to a reference policy."""

from __future__ import annotations

from methods.policy import PolicyGradientMethod
from methods.registry import register


@register("grpo")
class GRPO(PolicyGradientMethod):
    """arXiv 2402.03300 with the step of METHOD section 3; with `replay` it is the paper's GRPO with the buffer."""
