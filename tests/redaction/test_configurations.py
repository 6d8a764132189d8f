"""Configurations are recorded without secrets, at every depth, and are as they were otherwise."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tensormeter.redaction import MASK, mask_config

SECRET = "Zq7XWmK2pL"
RECORDED = json.loads((Path(__file__).parent / "configurations.json").read_text())


def test_texts_are_masked_by_name_at_every_depth():
    config = {
        "password": SECRET,
        "service": {"access_token": SECRET, "apiKey": SECRET, "max_tokens": 512},
        "wandb": {"key": SECRET, "project": "p"},
        "sinks": [{"cookie": SECRET}, {"url": f"https://u:{SECRET}@h/x"}],
        "api_keys": [SECRET, SECRET],
        "hub_token": {"value": SECRET},
        "env": [{"name": "HF_TOKEN", "value": SECRET}, {"name": "HOME", "value": "/root"}],
        "argv": ["train.py", "--password", SECRET, "--lr", "1"],
        "credentials": {"user": "me", "inner": {"anything": SECRET}, "file": "/x"},
        "command": f"train.py --api-key {SECRET}",
        "object": f"Namespace(password='{SECRET}', lr=0.1)",
        "document": json.dumps({"secret": SECRET, "lr": 1}),
        "tokens": {"hf": SECRET, "wandb": SECRET, "per_step": "many"},
        "api_key": {"first": SECRET},
        "items": [["api_key", SECRET], ["lr", 1], ["name", "x"]],
    }
    before = json.dumps(config)
    masked, names = mask_config(config)
    assert json.dumps(config) == before
    assert masked == {
        "password": MASK,
        "service": {"access_token": MASK, "apiKey": MASK, "max_tokens": 512},
        "wandb": {"key": MASK, "project": "p"},
        "sinks": [{"cookie": MASK}, {"url": "https://***@h/x"}],
        "api_keys": [MASK, MASK],
        "hub_token": {"value": MASK},
        "env": [{"name": "HF_TOKEN", "value": MASK}, {"name": "HOME", "value": "/root"}],
        "argv": ["train.py", "--password", MASK, "--lr", "1"],
        "credentials": {"user": "me", "inner": {"anything": MASK}, "file": "/x"},
        "command": "train.py --api-key ***",
        "object": "Namespace(password='***', lr=0.1)",
        "document": '{"secret": "***", "lr": 1}',
        "tokens": {"hf": MASK, "wandb": MASK, "per_step": "many"},
        "api_key": {"first": MASK},
        "items": [["api_key", MASK], ["lr", 1], ["name", "x"]],
    }
    assert names[:5] == ["password", "service.access_token", "service.apiKey", "wandb.key", "sinks.cookie"]


def test_what_is_no_secret_is_as_it_was():
    config = {
        "use_auth_token": True,
        "push_to_hub_token": None,
        "hub_token": "",
        "token": "<HUB_TOKEN>",
        "auth": "none",
        "pad_token": "<pad>",
        "unk_token": "unk",
        "image_token": "<image>",
        "additional_special_tokens": ["<s>", "</s>"],
        "added_tokens": [{"content": "<s>", "token": "x"}],
        "tokens_per_second": 1e5,
        "api_key_id": 7,
        "secret_count": 3,
        "num_passwords": 10,
        "password_length": 12,
        "password_required": True,
        "sort_key": "eval_loss",
        "cache_key": "0f9a7c3be1d24f6a8b5c",
        "key": "value",
        "model": {"token": {"init": "normal", "dim": 64}, "key": {"dim": 64}},
        "prompt": "Answer as Token: a text, then key: value. The password is hidden.",
        "author": "me",
    }
    assert mask_config(config) == (config, [])


def test_whole_numbers_are_masked_where_they_are_passwords():
    config = {"password": 123456, "db_pwd": 1234, "token": 123456, "api_key": 5, "passwords": 3, "password_rate": 0.5}
    masked, names = mask_config(config)
    assert masked == config | {"password": MASK, "db_pwd": MASK}
    assert names == ["password", "db_pwd"]


def test_configurations_of_real_training_scripts_stay_whole():
    """`configurations.json` is made by `record_configurations.py`."""
    assert mask_config(RECORDED) == (RECORDED, [])
    assert len(RECORDED["TrainingArguments"]) > 100


def test_secrets_among_real_training_arguments_are_masked():
    given = RECORDED["TrainingArguments"] | {"hub_token": SECRET, "wandb_api_key": SECRET}
    masked, names = mask_config({"arguments": given})
    assert names == ["arguments.hub_token", "arguments.wandb_api_key"]
    assert masked == {"arguments": given | {"hub_token": MASK, "wandb_api_key": MASK}}


NAMES = (
    st.sampled_from(
        ["token", "password", "key", "api_key", "auth", "name", "value", "lr", "a.b", "https://u:p@h/x", ""]
    )
    | st.text()
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([SECRET, "--token", "{}", '{"token": "x"}']),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
    max_leaves=20,
)


def shape(value, *, secret_numbers=False):
    """Everything but texts: these may be masked, and whole numbers under the name of a password."""
    if isinstance(value, dict):
        return [
            shape(item, secret_numbers="password" in name.lower() or (secret_numbers and name == "value"))
            for name, item in value.items()
        ]
    if isinstance(value, list):
        return [shape(item, secret_numbers=secret_numbers) for item in value]
    if isinstance(value, str) or (secret_numbers and isinstance(value, int) and not isinstance(value, bool)):
        return "text"
    return repr(value)


@given(st.dictionaries(NAMES.filter(lambda name: "pw" not in name.lower()), VALUES))
def test_values_that_are_no_text_never_change(config):
    masked, _ = mask_config(config)
    assert shape(masked) == shape(config)
    assert mask_config(masked) == (masked, [])  # twice is once
