import torch

from harness.config.schema import ModelConfig
from harness.models.chat import Chat
from harness.models.identity import model_identity
from harness.models.loading import load_model, load_tokenizer, save_model


def loaded(path, dtype="bfloat16"):
    config = ModelConfig(name="tiny_xs", path=str(path), dtype=dtype)
    return load_model(config, "cpu"), Chat(load_tokenizer(config), config), config


def test_a_saved_copy_is_the_same_model_and_any_change_another(tmp_path):
    module, chat, config = loaded("tiny:xs")
    first = model_identity(module, chat)
    save_model(module, config, tmp_path / "copy")
    copy, its_chat, _ = loaded(tmp_path / "copy")
    assert model_identity(copy, its_chat) == first
    assert model_identity(*loaded("tiny:xs", "float32")[:2]) != first
    assert model_identity(*loaded("tiny:s")[:2]) != first
    with torch.no_grad():
        next(module.parameters()).view(-1)[3] += 0.5
    assert model_identity(module, chat) != first
    copy.load_state_dict(load_model(config, "cpu").state_dict())
    its_chat.tokenizer.chat_template = its_chat.tokenizer.chat_template + " "
    assert model_identity(copy, its_chat) != first
