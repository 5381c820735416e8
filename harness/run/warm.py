"""The warm server of a study: `python -m harness.run.warm SOCKET` imports what a run needs, then forks cells.

A run that is forked gives the same bits as one whose process has imported all that by itself. The server has read no
model and no question, and no thread of torch has started.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module

from harness.process.warm import main

LATE = (
    "torch._dynamo",  # with the first optimizer
    "torchvision",  # with the first processor
    "transformers.models.qwen3_5.modeling_qwen3_5",  # with the first model of the tiny family
)
"""What a run imports while it makes its parts."""


def load() -> None:
    """Import what a run imports sooner or later, the libraries of evaluation without what importing them changes."""
    import harness.evaluation.evaluate
    import harness.run.run
    import harness.training.models
    import harness.training.scorer
    import harness.training.trainer  # noqa: F401
    from harness.config.compose import compose
    from harness.evaluation.library.isolation import preserved_state, quiet_lm_eval, quiet_lmms_eval

    for name in LATE:
        with suppress(ImportError):
            import_module(name)
    with suppress(ImportError), preserved_state(), quiet_lm_eval(), quiet_lmms_eval():
        pass
    with suppress(Exception):  # a table of a thousand expressions, which transformers keeps
        import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("qwen3_5")
    compose([])  # option files are kept as well


if __name__ == "__main__":
    main(sys.argv[1], load)
