"""GRPO (Alg. 4): plain groups, group advantages, clipped surrogate, no KL to a reference policy."""

from __future__ import annotations

from methods.keys import register
from methods.policy import PolicyGradientMethod


@register("grpo")
class GRPO(PolicyGradientMethod):
    """Plain student rollouts, group advantages, clipped surrogate (arXiv 2402.03300)."""
