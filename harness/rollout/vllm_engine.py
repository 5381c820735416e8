"""The rollout engine on vLLM (`rollout=vllm`): ids in, ids and log-probabilities out, new weights without a restart.

The student's engine lives in the trainer's process and takes its weights from the trainer's own tensors. A teacher's
lives in a process of its own, because two engines of one process share global state. Media are the pixels that the
trainer uses, not what vLLM's processor would make of the files. vLLM is imported here and nowhere else.
"""

from __future__ import annotations

import gc
import importlib.util
import itertools
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from harness.config.engines import RolloutConfig
from harness.config.schema import ModelConfig
from harness.errors import UserError, first_line
from harness.models.chat import Chat, PackedPrompt
from harness.models.loading import check_weights, resolve_path
from harness.rollout.base import BAN, EngineParts, Incoming, RolloutEngine, Sampling, rollout_seed, room
from harness.rollout.vllm_media import multimodal_input
from harness.serving.vllm_options import ALWAYS, STUDENT, engine_options, model_options
from harness.types import FinishReason, Prompt, Rollout, RolloutGroup, Sampler

MAX_TEMPERATURE = 2.0


def open_engine(parts: EngineParts) -> RolloutEngine:
    """The student's is in this process and begins without weights; a teacher's has a process of its own."""
    check_weights(parts.model)
    engine = VllmEngine(
        resolve_path(parts.model), parts.chat,
        sampler=parts.sampler, model=parts.model, config=parts.rollout, empty=parts.sampler == "student",
        gpus=parts.gpus,
    )  # fmt: skip
    if parts.weights is not None:
        engine.load_weights(parts.weights.module.named_parameters())
    return engine


class VllmEngine:
    """One model in a `vllm.LLMEngine`.

    `folder` (or hub id) has the configuration, the tokenizer and the weights. An `empty` engine does not read the
    weights: it lives in this process and samples noise until `load_weights`. Any other has a process of its own, on
    `gpus` alone where there are any.

    Log-probabilities are those of `logits / T` where nothing is truncated, as in training; with top-p, top-k or min-p
    they are those of the truncated distribution.

    Raises UserError where vLLM is missing, does not fit the installed torch, lacks the model's architecture, or has no
    memory for its context.
    """

    def __init__(
        self,
        folder: str,
        chat: Chat,
        *,
        sampler: Sampler,
        model: ModelConfig,
        config: RolloutConfig,
        empty: bool = False,
        gpus: Sequence[str] = (),
    ) -> None:
        self.sampler: Sampler = sampler
        self.has_own_weights = True
        self.takes_late_prompts = True
        self._chat = chat
        self._bias = dict.fromkeys(chat.banned_ids, BAN)
        self._sleeps = empty and config.vllm.sleep and torch.cuda.is_available()
        self._engine = _start(folder, model, config, empty=empty, sleeps=self._sleeps, gpus=gpus)
        self._in_process = empty
        self._is_filling = False
        """Awake as far as its weights, which are not there."""
        self._num_threads = torch.get_num_threads()
        self._names: set[str] = set()
        """Names of the tensors of the first transfer: every later one has to bring them all."""
        model_config = self._engine.vllm_config.model_config
        self._window: int = model_config.max_model_len
        self._bias |= dict.fromkeys(range(chat.num_tokens, model_config.get_vocab_size()), BAN)

    @property
    def context_window(self) -> int:
        return self._window

    def generate(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[RolloutGroup]:
        """Yield the group of each prompt as it finishes; all that have come are in hand at once.

        Raises UserError if a prompt leaves no room for a single token.
        """
        if sampling.temperature > MAX_TEMPERATURE:
            raise UserError(f"vLLM samples at temperatures up to {MAX_TEMPERATURE:g}, not at {sampling.temperature:g}")
        return self._groups(Incoming(prompts), sampling)

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Fill every tensor of the engine, layer by layer, from the trainer's: no second copy is made of them.

        Raises RuntimeError where a tensor of the model was not among them.
        """
        assert self._in_process, "only an engine of this process takes new weights"
        worker = self._engine.model_executor.driver_worker.worker
        given: set[str] = set()

        def tensors() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in named_tensors:
                given.add(name)
                yield name, tensor.detach()

        worker.reload_weights(weights_iterator=tensors())
        missing = self._names - given
        if missing:
            raise RuntimeError(f"the engine was not given {len(missing)} of its tensors, {min(missing)} among them")
        self._names = given
        _refresh_heads(worker.get_model())
        if self._is_filling:
            self._is_filling = False
            self._engine.wake_up(tags=["kv_cache"])  # not before: a transfer needs its room
        self._engine.reset_mm_cache()
        self._engine.reset_encoder_cache()
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("the engine kept prefixes of its old weights: requests were under way")

    def sleep(self) -> None:
        """On a GPU: drop weights and cache. The host keeps no copy, since new weights replace all of them."""
        if self._sleeps:
            self._engine.sleep(level=2)

    def wake(self) -> None:
        """Room for the weights, which are noise until `load_weights`; that makes room for the cache as well."""
        if self._sleeps and self._engine.is_sleeping():
            self._engine.wake_up(tags=["weights"])
            self._is_filling = True

    def close(self) -> None:
        """Give back its memory, and end its process where it has one."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.engine_core.shutdown()
            del engine
            gc.collect()

    def _groups(self, incoming: Incoming, sampling: Sampling) -> Iterator[RolloutGroup]:
        engine = self._engine
        waiting: dict[str, tuple[Prompt, PackedPrompt]] = {}
        tag = uuid.uuid4().hex[:8]
        names = (f"{tag}-{number}" for number in itertools.count())
        torch.set_num_threads(self._num_threads)  # a thread starts with OMP_NUM_THREADS, and vLLM checks the number
        try:
            while waiting or not incoming.ended:
                for prompt, packed, params in self._requests(incoming.take(wait=not waiting), sampling):
                    name = next(names)
                    waiting[name] = (prompt, packed)
                    engine.add_request(name, self._input(prompt, packed), params)
                with torch.random.fork_rng(devices=[]):  # vLLM draws from the process's generator, if for nothing
                    outputs = engine.step() if waiting else ()
                for output in outputs:
                    if output.finished:
                        prompt, packed = waiting.pop(output.request_id)
                        yield self._group(prompt, packed, output, sampling)
        finally:
            if waiting:  # the caller has stopped reading, or the engine failed
                engine.abort_request(list(waiting))

    def _requests(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[tuple[Prompt, PackedPrompt, Any]]:
        requests = []
        for prompt in prompts:
            packed = self._chat.pack(prompt)
            limit = room(prompt, len(packed.ids), sampling, self._window)
            requests.append((prompt, packed, self._params(prompt, limit, sampling)))
        return requests

    def _input(self, prompt: Prompt, packed: PackedPrompt) -> Any:
        ids = [*packed.ids, *prompt.prefix_ids]
        if packed.media is None:
            from vllm.inputs import tokens_input

            return tokens_input(ids)
        return multimodal_input(ids, packed.media, *self._chat.placeholder_ids)

    def _params(self, prompt: Prompt, limit: int, sampling: Sampling) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=sampling.num_rollouts if sampling.temperature > 0.0 else 1,  # vLLM refuses more of the same
            seed=None if sampling.temperature == 0.0 else rollout_seed(sampling, self.sampler, prompt.uid),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=limit - len(prompt.prefix_ids),
            stop_token_ids=sorted(self._chat.stop_ids),
            ignore_eos=True,
            logit_bias=None if sampling.unrestricted else self._bias,
            logprobs=0,
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _group(self, prompt: Prompt, packed: PackedPrompt, output: Any, sampling: Sampling) -> RolloutGroup:
        given = [*packed.ids, *prompt.prefix_ids]
        if list(output.prompt_token_ids) != given:
            raise RuntimeError(f"the engine read other ids than those of prompt {prompt.uid}")
        outputs = sorted(output.outputs, key=lambda o: o.index)
        if sampling.temperature == 0.0:
            outputs *= sampling.num_rollouts
        assert len(outputs) == sampling.num_rollouts
        rollouts = [self._rollout(prompt, packed, index, output) for index, output in enumerate(outputs)]
        return RolloutGroup(uid=prompt.uid, prompt=prompt, rollouts=rollouts)

    def _rollout(self, prompt: Prompt, packed: PackedPrompt, index: int, output: Any) -> Rollout:
        prefix = list(prompt.prefix_ids)
        ids = list(output.token_ids)
        logprobs = [entry[token_id].logprob for token_id, entry in zip(ids, output.logprobs, strict=True)]
        if not all(map(math.isfinite, logprobs)):
            raise RuntimeError(f"the engine's log-probabilities of prompt {prompt.uid} are not finite")
        finish: FinishReason = "stop" if output.finish_reason == "stop" or ids[-1] in self._chat.stop_ids else "length"
        return Rollout(
            sampler=self.sampler,
            index=index,
            prompt_ids=list(packed.ids),
            media=packed.media,
            completion_ids=prefix + ids,
            rollout_logprobs=[0.0] * len(prefix) + logprobs,
            text=self._chat.decode(prefix + ids),
            finish_reason=finish,
            num_prefix=len(prefix),
        )


def _start(
    folder: str, model: ModelConfig, config: RolloutConfig, *, empty: bool, sleeps: bool, gpus: Sequence[str]
) -> Any:
    if importlib.util.find_spec("vllm") is None:
        raise UserError("rollout=vllm needs vLLM, which is not installed: pip install -e '.[vllm]' in the checkout")
    with _environment(empty, gpus):
        try:
            from vllm import EngineArgs, LLMEngine
        except (ImportError, OSError, RuntimeError) as error:
            raise UserError(
                f"vLLM is installed and does not load ({first_line(error)}): it needs the torch that it was built "
                "for, zppo doctor says which"
            ) from error
        arguments = EngineArgs(
            model=folder,
            revision=model.revision,
            dtype=model.dtype,  # type: ignore[arg-type]
            tensor_parallel_size=1 if empty else len(gpus) or config.vllm.tensor_parallel_size,
            distributed_executor_backend="external_launcher" if empty and _is_a_rank() else None,
            enable_sleep_mode=sleeps,
            disable_log_stats=True,
            **ALWAYS | model_options(model) | (STUDENT if empty else {}),  # type: ignore[arg-type]
            **engine_options(config, folder, own_gpus=bool(gpus)),
            # The pixels are normalised already. Versions that always leave this to the processor have no such option.
            **{name: False for name in ("mm_device_do_normalize",) if hasattr(EngineArgs, name)},
        )
        state = torch.get_rng_state()
        try:
            # By an argument: the first engine of a process freezes what vLLM reads of the environment.
            return LLMEngine.from_engine_args(arguments, enable_multiprocessing=not empty)
        except Exception as error:
            raise UserError(_explain(folder, error)) from error
        finally:
            torch.set_rng_state(state)  # vLLM seeds the generators of the process


def _is_a_rank() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def _environment(in_process: bool, gpus: Sequence[str]) -> Iterator[None]:
    """vLLM reads where its core lives from the environment when it starts."""
    values = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if in_process else "1",
        "VLLM_NO_USAGE_STATS": "1",
        # Bound threads would bind the trainer's too.
        "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    }
    if gpus:
        values["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if in_process and _is_a_rank():  # an engine for each rank of the trainer, not one engine over all of them
        local_rank = torch.cuda.current_device() if torch.cuda.is_available() else dist.get_rank()
        values |= {
            "RANK": str(dist.get_rank()),
            "WORLD_SIZE": str(dist.get_world_size()),
            "LOCAL_RANK": str(local_rank),
        }
    before = {name: os.environ.get(name) for name in (*values, "LD_PRELOAD", "OMP_NUM_THREADS", "LOCAL_WORLD_SIZE")}
    set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
    os.environ.update(values)
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads  # its CPU worker replaces it by a warning
        torch.set_num_threads(num_threads)  # an engine in another process takes this one's threads for its own
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _refresh_heads(model: torch.nn.Module) -> None:
    """vLLM's CPU build packs weights for its kernels; a reload leaves the old pack of a head tied to the embedding."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and weight is not None and weight.dim() == 2 and weight.numel():
            module.quant_method.process_weights_after_loading(module)  # type: ignore[union-attr, operator]


def _explain(folder: str, error: Exception) -> str:
    """What vLLM says in pages, in a line with the remedy."""
    text = str(error)
    # A validation error of pydantic has its reason in the second line.
    head, _, rest = text.partition("\n")
    reason = first_line(Exception(rest if "validation error" in head else text)).removeprefix("Value error, ")
    reason = reason.partition(". ")[0].partition(" [type=")[0].rstrip(".")
    if "not supported for now" in text:
        return f"vLLM lacks the architecture of {folder} ({reason}): use rollout=transformers"
    if "derived max_model_len" in text:
        return f"rollout.vllm.max_model_len is more than {folder} can read ({reason}): lower it, or set it to null"
    if "KV cache" in text or "memory" in text:
        return (
            f"vLLM has no memory for {folder} ({reason}): lower rollout.vllm.max_model_len or raise "
            "rollout.vllm.memory_fraction (rollout.vllm.cache_gib without a GPU)"
        )
    return f"vLLM cannot start with {folder}: {reason}"
