from __future__ import annotations

import math
import threading

import pytest

from harness.config.engines import ServerConfig
from harness.errors import UserError
from harness.models.forward import LanguageModel
from harness.rollout.base import Sampling, rollout_seed
from harness.rollout.server_engine import ServerEngine
from harness.rollout.transformers_engine import TransformersEngine
from harness.serving.endpoints import Endpoints
from harness.types import Prompt, Question
from tests.support.http_server import Fault
from tests.support.model_server import serve

TEXTS = ("Compute 37+8+5.", "What is 2*3?", "Compute 1-9.")
HARD = "Why is 817*293 what it is?"
"""The model is not sure of anything here, so draws differ."""


@pytest.fixture
def engine(served_model, stack):
    """`engine(plan)`: the engine, and the server that it asks."""

    def make(plan=None, **options):
        server = stack.enter_context(serve(served_model, plan=plan))
        endpoints = Endpoints([server.url], "tiny:teacher", ServerConfig(max_wait=10.0), backoff=0.02)
        stack.callback(endpoints.close)
        options = {"context_window": served_model.plain.context_window} | options
        return ServerEngine(endpoints, served_model.chat, "teacher", **options), server

    return make


@pytest.fixture
def local(served_model) -> TransformersEngine:
    return TransformersEngine(
        LanguageModel.for_chat(served_model.module, served_model.chat), served_model.chat, "teacher", 16
    )


def asked(text: str, prefix_ids: tuple[int, ...] = (), uid: str | None = None) -> Prompt:
    question = Question(id=text, text=text, answer="1")
    messages = ({"role": "user", "content": text},)
    return Prompt(uid=uid or text, question=question, messages=messages, prefix_ids=prefix_ids)


def by_uid(groups):
    return {group.uid: group.rollouts for group in groups}


def spoiled(name: str, change) -> Fault:
    """Every choice's `name` is replaced by `change` of it."""

    def spoil(answer) -> None:
        for choice in answer["choices"]:
            choice[name] = change(choice.get(name))

    return Fault(spoil=spoil)


@pytest.mark.parametrize("with_prefix", [False, True])
def test_greedy_is_that_of_the_transformers_engine(served_model, engine, local, with_prefix):
    prefix = tuple(served_model.chat.encode_text("<think>3")) if with_prefix else ()
    prompts = [asked(text, prefix) for text in TEXTS]
    sampling = Sampling(num_rollouts=2, temperature=0.0, max_new_tokens=24)
    served, expected = by_uid(engine()[0].generate(prompts, sampling)), by_uid(local.generate(prompts, sampling))
    assert served.keys() == expected.keys() == set(TEXTS)
    for uid, rollouts in expected.items():
        assert [r.index for r in served[uid]] == [0, 1]
        for ours, theirs in zip(served[uid], rollouts, strict=True):
            assert ours.completion_ids == theirs.completion_ids and ours.prompt_ids == theirs.prompt_ids
            assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
            assert ours.num_prefix == len(prefix) and ours.rollout_logprobs[: len(prefix)] == [0.0] * len(prefix)
            assert ours.rollout_logprobs == pytest.approx(theirs.rollout_logprobs, abs=1e-4)
    assert {r.finish_reason for rollouts in expected.values() for r in rollouts} >= {"stop"}


def test_sampled_tokens_and_logprobs_are_those_of_the_seed(served_model, engine, local):
    """The server draws with the request's seed; with that seed the engine at hand draws the same."""
    sampling = Sampling(num_rollouts=3, seed=5, step=7, temperature=0.7, max_new_tokens=32)
    prompt = asked(HARD)
    served = by_uid(engine()[0].generate([prompt], sampling))[prompt.uid]
    seed = rollout_seed(sampling, "teacher", prompt.uid)
    # The loopback knows no uid and no step: its streams are those of uid "request" at step 0.
    same = Sampling(num_rollouts=3, seed=seed, temperature=0.7, max_new_tokens=32)
    expected = next(local.generate([asked(HARD, uid="request")], same)).rollouts
    assert [r.completion_ids for r in served] == [r.completion_ids for r in expected]
    assert len({tuple(r.completion_ids) for r in served}) > 1
    for ours, theirs in zip(served, expected, strict=True):
        assert ours.rollout_logprobs == pytest.approx(theirs.rollout_logprobs, abs=1e-4)


def test_what_a_request_says(served_model, engine):
    server_engine, server = engine(vocab_size=served_model.chat.num_tokens + 2)
    prompt = asked(TEXTS[0], tuple(served_model.chat.encode_text("So")))
    sampling = Sampling(num_rollouts=2, temperature=0.7, top_p=0.9, top_k=5, min_p=0.01, max_new_tokens=8)
    list(server_engine.generate([prompt], sampling))
    (body,) = server.requests
    ids = served_model.chat.pack(prompt).ids
    assert body["prompt"] == [*ids, *prompt.prefix_ids] and body["n"] == 2
    assert body["max_tokens"] == 8 - len(prompt.prefix_ids)
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0.7, 0.9, 5, 0.01)
    size = served_model.chat.num_tokens
    assert body["logit_bias"] == {str(i): -100.0 for i in [*served_model.chat.banned_ids, size, size + 1]}
    assert body["stop_token_ids"] == sorted(served_model.chat.stop_ids) and body["ignore_eos"] is True
    assert 0 <= body["seed"] < 2**48


def logprobs(change) -> Fault:
    return spoiled("logprobs", lambda entry: {"token_logprobs": change(entry["token_logprobs"])})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (spoiled("prompt_token_ids", lambda ids: [*ids[:3], ids[3] + 1, *ids[4:]]), r"token 3 is \d+ where \d+ was"),
        (spoiled("prompt_token_ids", lambda ids: ids[:-1]), r"is nothing where \d+ was sent"),
        (spoiled("prompt_token_ids", lambda ids: None), r"gives no token ids: .*teacher\.api=text"),
        (spoiled("token_ids", lambda ids: None), r"gives no token ids: .*teacher\.api=text"),
        (spoiled("token_ids", lambda ids: [10**6] * len(ids)), "sampled id 1000000, and its tokenizer has"),
        (spoiled("logprobs", lambda entry: None), r"gives no log-probabilities of its tokens: .*teacher\.api=text"),
        (spoiled("logprobs", lambda e: {"token_logprobs": e["token_logprobs"][1:]}), "gives no log-probabilities"),
        (spoiled("logprobs", lambda e: {"token_logprobs": [None] * len(e["tokens"])}), "are no numbers"),
        (spoiled("logprobs", lambda e: {"token_logprobs": [math.nan] * len(e["tokens"])}), "are no numbers"),
        (Fault(spoil=lambda answer: answer["choices"].pop()), "gave 1 replies where 2 were asked for"),
        (Fault(spoil=lambda answer: answer.update(choices=["a", "b"])), "gave replies that are no records"),
        (Fault(spoil=lambda answer: answer.update(choices=[None, None])), "gave replies that are no records"),
        (Fault(spoil=lambda answer: answer.update(choices={"0": 1, "1": 2})), "gave 0 replies where 2"),
        (spoiled("index", lambda index: 0), "numbered its 2 replies otherwise than 0 to 1"),
        (spoiled("index", lambda index: str(index)), "numbered its 2 replies otherwise"),
        (spoiled("index", lambda index: [index]), "numbered its 2 replies otherwise"),
        (spoiled("prompt_token_ids", lambda ids: 7), "gives no token ids"),
        (spoiled("prompt_token_ids", lambda ids: [["x" * 10**4], *ids[1:]]), r"token 0 is \['x{48} where"),
        (spoiled("token_ids", lambda ids: [-1] * len(ids)), "sampled id -1, and its tokenizer has"),
        (spoiled("token_ids", lambda ids: [-(2**9000)] * len(ids)), r"sampled id -\d{19}, and"),
        (spoiled("token_ids", lambda ids: [float(i) for i in ids]), "token ids that are no integers"),
        (spoiled("token_ids", lambda ids: [str(i) for i in ids]), "token ids that are no integers"),
        (spoiled("token_ids", lambda ids: [True] * len(ids)), "token ids that are no integers"),
        (spoiled("token_ids", lambda ids: {"0": 1}), "token ids that are no integers"),
        (logprobs(lambda values: ["-1"] * len(values)), "are no numbers"),
        (logprobs(lambda values: [True] * len(values)), "are no numbers"),
        (logprobs(lambda values: [-(10**400)] * len(values)), "are no numbers"),
        (logprobs(lambda values: [-math.inf] * len(values)), "are no numbers"),
        (logprobs(lambda values: [0.1] * len(values)), "gives log-probabilities above 0"),
        (logprobs(lambda values: {"a": 1}), "gives no log-probabilities of its tokens"),
        (spoiled("logprobs", lambda entry: [1]), "gives no log-probabilities of its tokens"),
    ],
)
def test_answers_that_cannot_be_right_are_refused(engine, fault, message):
    server_engine, _ = engine(plan=lambda number, body: fault)
    sampling = Sampling(num_rollouts=2, temperature=1.0, max_new_tokens=6)
    with pytest.raises(UserError, match=message) as error:
        list(server_engine.generate([asked(TEXTS[0])], sampling))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["banned", "after the end", "too long"])
def test_a_reply_that_was_not_allowed_is_refused(served_model, engine, how):
    """What the request forbids: ids, tokens after one that ends a turn, more tokens than were asked for."""
    end, banned = served_model.chat.end_id, served_model.chat.banned_ids[0]
    ids = {"banned": [banned, end], "after the end": [end, 70, end], "too long": [70] * 7}[how]
    message = {"banned": f"sampled id {banned}, which was forbidden", "after the end": f"went on after id {end}",
               "too long": "gave 7 tokens where at most 6 were asked for"}[how]  # fmt: skip

    def spoil(answer) -> None:
        for choice in answer["choices"]:
            choice |= {"token_ids": ids, "logprobs": {"token_logprobs": [-1.0] * len(ids)}}

    server_engine, _ = engine(plan=lambda number, body: Fault(spoil=spoil))
    with pytest.raises(UserError, match=message):
        list(server_engine.generate([asked(TEXTS[0])], Sampling(num_rollouts=2, max_new_tokens=6)))


def test_a_log_probability_that_is_0_but_for_rounding_is_0(served_model, engine):
    server_engine, _ = engine(plan=lambda number, body: logprobs(lambda values: [1e-6] * len(values)))
    (group,) = server_engine.generate([asked(TEXTS[0])], Sampling(max_new_tokens=6))
    assert set(group.rollouts[0].rollout_logprobs) == {0.0}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("\ud800 \\boxed{2}", "? \\boxed{2}"),
        ("a\x00b", "a\x00b"),
        (None, ""),
        (["a"], ""),
        ({"a": 1}, ""),
        ("", ""),
    ],
)
def test_text_that_is_none_is_empty_and_half_a_character_a_question_mark(engine, content, text):
    fault = Fault(spoil=lambda answer: answer["choices"][0].update(message={"content": content}, finish_reason="stop"))
    server_engine, _ = engine(plan=lambda number, body: fault, api="text")
    (group,) = server_engine.generate([asked(TEXTS[0])], Sampling(max_new_tokens=40))
    assert group.rollouts[0].text == text and group.rollouts[0].finish_reason == "stop"
    group.rollouts[0].text.encode()


@pytest.mark.parametrize("message", ["x", ["content"], None, 3])
def test_a_message_that_is_none_has_no_text(engine, message):
    fault = Fault(spoil=lambda answer: answer["choices"][0].update(message=message))
    server_engine, _ = engine(plan=lambda number, body: fault, api="text")
    (group,) = server_engine.generate([asked(TEXTS[0])], Sampling(max_new_tokens=40))
    assert group.rollouts[0].text == ""


def test_text_above_the_limit_is_cut_off_there(served_model, engine):
    fault = Fault(
        spoil=lambda answer: answer["choices"][0].update(message={"content": "abc " * 10_000}, finish_reason="stop")
    )
    server_engine, _ = engine(plan=lambda number, body: fault, api="text")
    (group,) = server_engine.generate([asked(TEXTS[0])], Sampling(max_new_tokens=40))
    (rollout,) = group.rollouts
    assert (len(rollout.completion_ids), rollout.finish_reason) == (40, "length")
    assert rollout.text and ("abc " * 10_000).startswith(rollout.text)


def test_a_reply_that_ends_without_an_end_is_refused(engine):
    """A server with defaults of its own may stop at tokens that do not end a turn here."""

    def cut(answer) -> None:
        choice = answer["choices"][0]
        choice["token_ids"] = choice["token_ids"][:2]
        choice["logprobs"]["token_logprobs"] = choice["logprobs"]["token_logprobs"][:2]

    server_engine, _ = engine(plan=lambda number, body: Fault(spoil=cut))
    with pytest.raises(UserError, match="after 2 tokens without a token that ends a turn"):
        list(server_engine.generate([asked(TEXTS[0])], Sampling(temperature=0.0, max_new_tokens=24)))


def test_text_alone(served_model, engine, local):
    """The template is the same on both sides here, so a greedy reply is that of ids; it is not fit for training."""
    server_engine, server = engine(api="text")
    prompts = [asked(text) for text in TEXTS]
    sampling = Sampling(num_rollouts=2, temperature=0.0, max_new_tokens=24)
    served, expected = by_uid(server_engine.generate(prompts, sampling)), by_uid(local.generate(prompts, sampling))
    assert len(server.requests) == 3 and all("logit_bias" not in body for body in server.requests)
    for uid, rollouts in expected.items():
        assert [r.text for r in served[uid]] == [r.text for r in rollouts]
        for ours, theirs in zip(served[uid], rollouts, strict=True):
            assert ours.finish_reason == theirs.finish_reason
            assert (ours.completion_ids[-1] == served_model.chat.end_id) == (ours.finish_reason == "stop")
            assert served_model.chat.decode(ours.completion_ids) == ours.text
            assert len(ours.rollout_logprobs) == len(ours.completion_ids)
            assert all(math.isnan(logprob) for logprob in ours.rollout_logprobs)


def test_what_reads_as_a_special_token_ends_no_turn_of_a_text_prompt(engine):
    server_engine, server = engine(api="text")
    list(server_engine.generate([asked("say <|im_end|> twice")], Sampling(temperature=0.0, max_new_tokens=4)))
    (body,) = server.requests
    assert body["messages"] == [{"role": "user", "content": "say < |im_end|> twice"}]


def test_text_rollouts_are_drawn_one_by_one_with_seeds_in_a_row(engine):
    server_engine, server = engine(api="text")
    sampling = Sampling(num_rollouts=3, temperature=1.0, max_new_tokens=32)
    (group,) = server_engine.generate([asked(HARD)], sampling)
    seed = rollout_seed(sampling, "teacher", HARD)
    assert sorted(body["seed"] for body in server.requests) == [seed, seed + 1, seed + 2]
    assert [r.index for r in group.rollouts] == [0, 1, 2] and len({r.text for r in group.rollouts}) > 1


def test_what_cannot_be_asked_is_refused_before_anything_is_sent(served_model, engine):
    prefix = tuple(served_model.chat.encode_text("So"))
    text_engine, server = engine(api="text")
    with pytest.raises(UserError, match=r"starts the reply with given tokens.*teacher\.api=tokens"):
        text_engine.generate([asked(TEXTS[0], prefix)], Sampling())
    narrow, _ = engine(context_window=4)
    with pytest.raises(UserError, match="the context window 4: no room is left"):
        narrow.generate([asked(TEXTS[0])], Sampling())
    picture = Question(id="seen", text="What is this?", answer="1", images=(object(),))  # type: ignore[arg-type]
    message = {"role": "user", "content": picture.text}
    with pytest.raises(UserError, match="question seen has media and a served model is asked text prompts only"):
        text_engine.generate([Prompt(uid="seen", question=picture, messages=(message,))], Sampling())
    with pytest.raises(UserError, match="an endpoint cannot take new weights"):
        text_engine.load_weights([])
    assert server.requests == []


def test_prompts_that_come_while_others_are_answered_are_asked_too(engine):
    """The second prompt is given only when the group of the first is there; what the source raises is raised."""
    made, _ = engine()
    first = threading.Event()

    def late(error=None):
        yield asked(TEXTS[0])
        assert first.wait(20)
        if error is not None:
            raise error
        yield asked(TEXTS[1])

    sampling = Sampling(num_rollouts=2, max_new_tokens=8)
    uids = []
    for group in made.generate(late(), sampling):
        uids.append(group.uid)
        first.set()
    assert uids == [TEXTS[0], TEXTS[1]]
    with pytest.raises(OSError, match="gone"):
        list(made.generate(late(OSError("gone")), sampling))
