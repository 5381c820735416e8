"""What a plugin imports: the contract of a method, and the parts that the built-in methods are made of.

With `harness.types` (records) and `harness.testing` (conformance kit) it is the stable interface for methods that live
in packages of their own. Imports no torch.
"""

from methods.advantages import group_advantages
from methods.contract import Method, MethodConfig, MethodError, plain_prompt, plain_prompts
from methods.distill import DistillationMethod, DistillConfig, distillation_loss
from methods.losses import (
    cross_entropy_loss,
    entropy_sum,
    jsd_loss,
    jsd_topk_loss,
    policy_gradient_loss,
    token_logprobs,
)
from methods.policy import PolicyGradientConfig, PolicyGradientMethod, training_rewards
from methods.prompts import CLOSING, neutralize, plain_text, user_turn
from methods.samples import rollout_sample, sampled_by_student, teacher_prompt

__all__ = [
    "CLOSING",
    "DistillConfig",
    "DistillationMethod",
    "Method",
    "MethodConfig",
    "MethodError",
    "PolicyGradientConfig",
    "PolicyGradientMethod",
    "cross_entropy_loss",
    "distillation_loss",
    "entropy_sum",
    "group_advantages",
    "jsd_loss",
    "jsd_topk_loss",
    "neutralize",
    "plain_prompt",
    "plain_prompts",
    "plain_text",
    "policy_gradient_loss",
    "rollout_sample",
    "sampled_by_student",
    "teacher_prompt",
    "token_logprobs",
    "training_rewards",
    "user_turn",
]
