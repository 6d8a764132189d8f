"""Configurations are recorded without secrets, at every depth, and are as they were otherwise."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensormeter.redaction import MASK, mask_config

SECRET = "Zq7XWmK2pL"
PARTS = "token app service shared root storage function bot admin consumer redis registry webhook".split()
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


def test_entries_that_are_no_secrets_stay_as_they_were():
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
    arguments = RECORDED["TrainingArguments"] | {"hub_token": SECRET, "wandb_api_key": SECRET}
    masked, names = mask_config({"arguments": arguments})
    assert names == ["arguments.hub_token", "arguments.wandb_api_key"]
    assert masked == {"arguments": arguments | {"hub_token": MASK, "wandb_api_key": MASK}}


@pytest.mark.parametrize(
    "config",
    [
        {"params": [{"Name": "api_key", "Value": "{}"}, {"NAME": "lr", "VALUE": "x"}]},
        {"params": [{"id": "api_key", "val": "{}"}]},
        {"params": [{"Key": "hub.token", "Values": ["{}", "{}"]}]},
        {"k": "DB_PASSWORD", "v": "{}"},
        {"parameter": "secret", "value": "{}", "key": "first"},
        {"openai": {"api": "{}"}},
        {"wandb": {"key": "{}"}},
        {"service_key": "{}"},
        {"auth": {"issuer": "https://x", "extra": "{}", "inner": {"more": "{}"}}},
        {"auth": {"password": "{}", "client_secret": "{}"}},
        {"encryption": {"key": "{}"}},
        {"modal": {"token_id": "{}"}},
        {"pin": "1234"},
        {"items": [["https://u:{}@h/x", 1], ["lr", 1]]},
        {"xml": "<db><user>me</user><password>{}</password></db>"},
        {"xml": "<c:api-key type='x'>{}</c:api-key>"},
        {"xml": "<password><![CDATA[{}]]></password>"},
        {
            "xml": "<property name='password' value='{}'/><add key='api_key' value='{}'/><string name='token'>{}</string>"
        },
        {"plist": "<key>api_key</key>\n  <string>{}</string>"},
        {"command": 'python train.py --config "{\\"password\\": \\"{}\\", \\"lr\\": 1}"'},
        {"env": [{"variableName": "API_KEY", "value": "{}"}, {"env_var": "API_KEY", "value": "{}"}]},
        {"fields": [{"field": "password", "value": "{}"}, {"property": "api_key", "stringValue": "{}"}]},
        {"auth": {"basic": "me:{}"}},
        {"netrc": "machine h login u password {}"},
        {"netrc": "machine h\n  login u\n  password {}\nmachine i login v password {}\n"},
        {"netrc": "default login u password {}"},
        {"bark": "https://api.day.app/{}/title?sound=x"},
        {"note": "Token: {}\nAnswer: world"},
        {"text": 'api_key = "{}"'},
    ],
)
def test_secrets_are_masked_in_every_form_of_configurations(config):
    masked, names = mask_config(json.loads(json.dumps(config).replace("{}", SECRET)))
    assert SECRET not in json.dumps(masked)
    assert "1234" not in json.dumps(masked)
    assert names


@pytest.mark.parametrize("times", [2, 3, 4])
def test_json_in_json_is_masked(times):
    """Settings which several programs pass on are quoted several times."""
    document, plain = {"password": SECRET, "lr": 0.1}, {"a": "b"}
    for _ in range(times):
        document, plain = json.dumps(document), json.dumps(plain)
    assert mask_config({"plain": plain}) == ({"plain": plain}, [])
    shown = mask_config({"document": document})[0]["document"]
    for _ in range(times):
        shown = json.loads(shown)
    assert shown == {"password": MASK, "lr": 0.1}


@pytest.mark.parametrize(
    "config",
    [
        *({f"{word}_key": "params"} for word in PARTS),
        *({f"{word}_key": "a1B2c3D4e5"} for word in ("eval", "dataset", "arch", "image", "sample", "label", "task")),
        {"dataset_key": "ImageNet21kW2B16", "arch_key": "ResNeXt101_32x8d", "data_keys": ["0a1b2c3d4e5f6071"]},
        {"model_key": "ResNeXt50_32x4d"},
        {"wandb": {"key": "loss", "project": "p"}},
        {"dataset": {"api": {"key": "text"}}},
        {"openai": {"api": "chat"}, "api": "v1"},
        {"auth": {"type": "oidc", "issuer": "https://x", "audience": "https://y", "flow": "device"}},
        {
            "auth": {"domain": "example.com", "client_id": "my-app", "redirect": "http://localhost/cb"},
            "keys": {"id": "uid"},
        },
        {"template": "password: {password}", "old": "password: %(password)s", "help": "--password=<db-password>"},
        {"metric": {"name": "auth", "default": "min"}, "class": {"label": "cookie", "value": "food"}},
        {"tag": "<a name='token' value='<s>'/>", "labels": [{"label": "token", "name": "x", "value": 3}]},
        {"nl_token": "\\n", "tab_token": "\\t", "end_of_line_token": "\\r\\n"},
        {"regex": r"password=\w+", "pattern": r"api_key=[^&]+", "other": r"token=(.*)", "named": r"secret=(?P<x>\S+)"},
        {"prompt": "Token: hello\nAnswer: world"},
        {"system_prompt": 'Use api_key = "your key" when asked, or password = "<your password>".'},
        {"api_key": "YOUR_API_KEY", "token": "your-token-here", "password": "xxxx"},
        {"pad_token_id": "<pad>", "token_type_ids": ["a1B2c3D4e5"], "image_token_id": "a1B2c3D4e5"},
        {"pin": 1234, "pin_memory": "1234", "gpio": {"pin": "17"}},
        {"metrics": [{"Name": "token_accuracy", "Value": "mean"}, {"id": "loss", "val": "sum"}]},
        {
            "xml": "<prompt>Say <key>hello</key></prompt>",
            "think": "<think>a</think>",
            "mark": "Put it in <token> this tag </token>.",
        },
        {"note": "the machine resets its password every day; login names stay"},
        {"quoted": '"a text"', "half": '"a', "speech": '"Yes", he said, "no".'},
    ],
    ids=str,
)
def test_names_and_words_of_training_are_no_secrets(config):
    assert mask_config(config) == (config, [])


def test_masked_names_name_the_same_secrets():
    once, _ = mask_config({"list": [{"key": "TOKEN:0@", "value": "0000"}], "token=a1B2": "text"})
    assert mask_config(once) == (once, [])


NAMES = st.sampled_from(
    ["token", "password", "key", "api_key", "auth", "name", "value", "lr", "a.b", "https://u:p@h/x", "TOKEN:0@", ""]
) | st.text(max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | NAMES
    | st.sampled_from([SECRET, "--token", "{}", '{"token": "x"}', '"\\"a\\""']),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)
"""Small: masking looks at a value, its name, and those around it. Larger examples find no more, and take minutes."""

PASSWORD = re.compile("pass|pw|psw", re.IGNORECASE)


def unlike(given, masked, *, password=False):
    """List what differs in more than texts. A whole number may be masked where a text around it is the name of a password."""
    if isinstance(given, dict) and isinstance(masked, dict) and len(given) == len(masked):
        texts = [text for text in (*given, *given.values()) if isinstance(text, str)]
        given, masked = [*given.values()], [*masked.values()]
    else:
        texts = [text for text in given if isinstance(text, str)] if isinstance(given, list) else []
    if isinstance(given, list) and isinstance(masked, list) and len(given) == len(masked):
        password = password or any(PASSWORD.search(text) for text in texts)
        return [pair for pair in zip(given, masked, strict=True) if unlike(*pair, password=password)]
    if isinstance(given, str) and isinstance(masked, str):
        return []
    if password and type(given) is int and masked == MASK:
        return []
    return [] if repr(given) == repr(masked) else [(given, masked)]


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_values_that_are_no_text_never_change(config):
    masked, _ = mask_config(config)
    assert not unlike(config, masked)
    assert mask_config(masked) == (masked, [])  # twice is once
