"""The place of a teacher in words, for the plan and the doctor."""

from __future__ import annotations

from harness.config.deployment import TeacherPlace


def place_texts(place: TeacherPlace) -> tuple[str, str]:
    """What samples the teacher, and what gives its distribution, with the devices."""
    gpus = f"GPUs {', '.join(map(str, place.own_gpus))} of each node" if place.own_gpus else "the student's GPU"
    held = "the student's device" if place.beside else ", ".join(place.devices)
    served = f"a server of the run on {gpus}" if place.serves else f"{place.num_urls} endpoints"
    samples = {"transformers": f"transformers on {held}", "vllm": f"vLLM on {gpus}", "server": served, None: "-"}
    scores = {"local": f"a copy on {held}", "process": f"a process on {held}", "server": served, None: "-"}
    return samples.get(place.samples, f"{place.samples} on {gpus}"), scores[place.scores]
