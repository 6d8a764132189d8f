"""Command lines are recorded without secrets, however an option is called, and stay readable otherwise."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensormeter.redaction import MASK, mask_arguments, mask_config, mask_text
from tensormeter.resource.command import mask_secrets

SECRET = "Zq7XWmK2pL"

OPTIONS = """--wandb-key --wandb_api_key --WandbKey --wandbkey --pwd --passwd --pass --password --user-password --dbpass --mlflow-password
--passphrase --cookie --auth --http-auth --bearer --hf-token --hub_token --hubToken --token --login-token --token-value --neptune-token
--apikey --apiKey --api.key --X-API-KEY --openai-key --comet-api-key --client_secret --secret_key --aws_secret_access_key --access-key
--private_key --credentials --sas_token --connection_string --dsn --webhook_url --slack_webhook --signature --jwt --auth-code --github-pat
--sentry-dsn --session-cookie --ssh-password --encryption-key -password --use_auth_token --unlock-code --recovery-code
--modal-token-id --hf-token-id --pin --app-key --consumer-key""".split()


@pytest.mark.parametrize("option", OPTIONS)
def test_a_secret_is_masked_by_the_name_of_its_option(option):
    assert mask_arguments([option, SECRET, "--lr", "1"]) == [option, MASK, "--lr", "1"]
    assert mask_arguments([f"{option}={SECRET}", "--lr", "1"]) == [f"{option}={MASK}", "--lr", "1"]
    assert mask_text(f"train.py {option} {SECRET} --lr 1") == f"train.py {option} {MASK} --lr 1"


def spellings(name):
    """A name as programs write it: `db_api_key`, `db-api-key`, `DB_API_KEY`, `db.api_key`, `dbApiKey`, `dbapikey`."""
    first, *more = name.split("_")
    return [
        *(name, name.replace("_", "-"), name.upper(), name.replace("_", ".", 1)),
        *(first + "".join(word.title() for word in more), name.replace("_", "")),
    ]


@pytest.mark.parametrize("owner", ["wandb", "hf", "openai", "db", "user", "smtp", "foo", "my", "bar_baz", "github"])
def test_every_spelling_of_a_name_is_known(owner):
    kinds = """token secret password passwd pwd pass api_key access_key secret_key access_token passphrase credentials cookie auth
    webhook webhook_url private_key client_secret session_token refresh_token jwt"""
    for kind in kinds.split():
        for name in spellings(f"{owner}_{kind}"):
            assert mask_arguments([f"{name}={SECRET}", f"--{name}", SECRET]) == [f"{name}={MASK}", f"--{name}", MASK]
            assert mask_config({name: SECRET}) == ({name: MASK}, [name])


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["HF_TOKEN={}"], ["HF_TOKEN=***"]),
        (["--env", "HF_TOKEN={}"], ["--env", "HF_TOKEN=***"]),
        (["-eHF_TOKEN={}"], ["-eHF_TOKEN=***"]),
        (["model.api_key={}"], ["model.api_key=***"]),
        (["+wandb.key={}"], ["+wandb.key=***"]),
        (["db.encryption.key=two words"], ["db.encryption.key=***"]),
        (["++hub.token='{}'"], ["++hub.token=***"]),
        (["db.password={} with spaces, and more"], ["db.password=***"]),
        (["--set", "a=1,api_key={},b=2"], ["--set", "a=1,api_key=***,b=2"]),
        (["-H", "Authorization: Bearer {}"], ["-H", "Authorization: Bearer ***"]),
        (["-H", "Cookie: a={}; b={}"], ["-H", "Cookie: ***"]),
        (["-HX-Api-Key:{}"], ["-HX-Api-Key:***"]),
        (["--header=X-Api-Key: {}"], ["--header=X-Api-Key: ***"]),
        (["--header", "Authorization:", "Bearer", "{}"], ["--header", "Authorization:", "Bearer", "***"]),
        (["--api-keys", "{}", "{}", "--lr", "1"], ["--api-keys", "***", "***", "--lr", "1"]),
        (["--db", "Server=h;User Id=u;Password={};x=y"], ["--db", "Server=h;User Id=u;Password=***;x=y"]),
        (["--db", "host=h user=u password={} dbname=d"], ["--db", "host=h user=u password=*** dbname=d"]),
        (["--c", "AccountName=x;AccountKey={}==;E=d"], ["--c", "AccountName=x;AccountKey=***;E=d"]),
        (["--config", "{{'api_key': '{}', 'lr': 1}}"], ["--config", "{{'api_key': '***', 'lr': 1}}"]),
        (["--config", "{{api_key: {}, lr: 1}}"], ["--config", "{{api_key: ***, lr: 1}}"]),
        (["--config={{wandb: {{key: 1}}, token: {}}}"], ["--config={{wandb: {{key: 1}}, token: ***}}"]),
        (["-c", "import x; x.login(token='{}')"], ["-c", "import x; x.login(token='***')"]),
        (["--pwd", "1234"], ["--pwd", "***"]),
        (["X-Api-Key:ab{{c,{}"], ["X-Api-Key:***"]),
        (["-c", "os.environ['HF_TOKEN'] = '{}'"], ["-c", "os.environ['HF_TOKEN'] = '***'"]),
        (["-c", "lr = 1\npassword = {}\n"], ["-c", "lr = 1\npassword = ***\n"]),
        (["--sas", "?sv=1&sig={}%3D", "--x", "?sv=1&sig=a%2B{}"], ["--sas", "***", "--x", "?sv=1&sig=***"]),
        (["--x", "h:80/a?sig=a%2B{}"], ["--x", "h:80/a?sig=***"]),
        (["--no-auth", "train.bin", "--password", "{}"], ["--no-auth", "train.bin", "--password", "***"]),
        (["curl", "-u", "me:{}", "--proxy-user=me:{}"], ["curl", "-u", "me:***", "--proxy-user=me:***"]),
        (["--x-functions-key", "{}"], ["--x-functions-key", "***"]),
        (["--password", "-1"], ["--password", "***"]),
        (["--pin", "1234"], ["--pin", "***"]),
        (["card.pin=123456"], ["card.pin=***"]),
        (["--push", "https://api.day.app/{}"], ["--push", "https://api.day.app/***"]),
        (["--netrc", "machine h login u password {}"], ["--netrc", "machine h login u password ***"]),
        (["--xml=<password>{}</password>"], ["--xml=<password>***</password>"]),
    ],
)
def test_a_secret_is_masked_in_every_form(arguments, shown):
    expected = [part.format() if "{{" in part else part for part in shown]
    assert mask_arguments([part.format(SECRET, SECRET) for part in arguments]) == expected


def test_json_in_an_argument_is_masked_at_every_depth():
    document = {"wandb": {"key": SECRET}, "list": [{"api_key": SECRET, "max_tokens": 512}], "lr": 1e-3}
    (shown,) = mask_arguments([json.dumps(document)])
    assert json.loads(shown) == {"wandb": {"key": MASK}, "list": [{"api_key": MASK, "max_tokens": 512}], "lr": 1e-3}
    plain = '{"lr":   1e-3, "max_tokens": 512}'
    assert mask_arguments([plain]) == [plain]


READABLE = """--max-tokens 512|--tokenizer gpt2|--tokenizer_name bert|--max_new_tokens 5|--pad-token <pad>|--pad_token [PAD]|--eos-token </s>
--num-tokens 300B|--sort-key loss|--key loss|--keys a|--monkey x|--keyboard x|--passes two|--num-passes 3|--forward-pass x|--bypass x
--compass x|--password_file /x/y|--api-key-env OPENAI|--author me|--authority me|--secretary me|--use-auth-token True
--use_auth_token false|--hub-strategy every_save|pass@k=1|--optimizer adam|--data /data/keys/train.bin|--primary-key id|--image-key jpg
--label_key cls|--text_key text|--auth-type basic|--auth basic|--token-level mean|--loss-per-token mean|--token_type bearer|--public-key x
--webhook-events a|--signature serving_default|--session train|--user me@example.com|--devices cuda:0|--host localhost:8000
--rdzv_endpoint host:29500|--image python:3.11@sha256:abc|--split train[:10%]|lr=1e-3|model.key_dim=64|--token ${oc.env:HF_TOKEN}
--hub_token <HUB_TOKEN>|task-classification-model-large|mask-rcnn-resnet50-fpn-v2|hf_transformers_backend_long|s3://bucket/key/a.pt
--note basic training|--resume /a/b@c|https://h:8080/@scope/x|https://huggingface.co/a/b?revision=main#files|hf://datasets/u/d@main/x
--user 1000:1000|-u train.py|--commit 0123456789abcdef0123456789abcdef01234567|--ssh-key ~/.ssh/id_rsa|--credentials /home/me/creds.json|--private-key ./key.pem
--password-stdin registry.example.org|--token_dropout 0.1|--mask_token mask|--cookiecutter x|--pass 2|--nl_token \\n|--token_key tokens|--app-key train|--root-key params
--storage_key name|--function_key f|--bot-key x|--redis-key queue|wandb.key=loss|--dataset.api.key text|--arch-key ResNeXt101_32x8d|--eval_key a1B2c3D4e5|--pin left|--pin 4
--pad-token-id 32000|--regex password=\\w+|--api-key YOUR_API_KEY|--code python|--zip-code 94110"""


@pytest.mark.parametrize("line", READABLE.replace("\n", "|").split("|"))
def test_words_that_are_no_secrets_stay_readable(line):
    for arguments in (line.split(" ", 1), line.split(), [line], [line.replace(" ", "=", 1)]):
        assert mask_arguments([*arguments, "--lr", "1"]) == [*arguments, "--lr", "1"]


@pytest.mark.parametrize(
    "token",
    [
        "hf_abcdefghijklmnopqrstuvwxyz",
        "sk-proj-abcdefghijklmnop1234",
        "ghp_abcdefghijklmnopqrst",
        "github_pat_abcdefghijklmnopqrst",
        "glpat-abcdefghijklmnopqrst",
        "xoxb-1234567890-abcdef",
        "AKIAIOSFODNN7EXAMPLE",
        "AIzaSyA1234567890abcdefghijklmnopqrstuvw",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc_def-123",
        "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\ncut off",
    ],
)
def test_a_token_of_well_known_form_is_masked_under_any_name(token):
    for text in ("{}", "see {} there", "--note={}", "/path/{}", '{{"a": "{}"}}'):
        assert token not in mask_text(text.format(token))
        assert MASK in mask_text(text.format(token))
    assert mask_text(token[:9]) == token[:9]


def test_a_key_of_an_unknown_service_is_masked_if_it_looks_random():
    assert mask_arguments(["--fancy-key", SECRET]) == ["--fancy-key", MASK]
    assert mask_arguments(["--fancy-key", "0f9a7c3be1d24f6a8b5c"]) == ["--fancy-key", MASK]
    for value in ("eval_f1_macro_v2", "ResNet50ImageNet", "accuracy@5", "train/loss", "metadata.json"):
        assert mask_arguments(["--fancy-key", value]) == ["--fancy-key", value]


def test_values_of_secret_variables_are_masked_wherever_they_are():
    environment = {
        "MY_SECRET": "correct-horse",
        "PWD": "/home/me/project",
        "CI_AUTH": "github",
        "GITHUB_TOKEN": "1234",
        "TOKENIZERS_PARALLELISM": "disabled-here",
    }
    line = [
        "/home/me/project/train.py",
        "--remote",
        "https://github.com/a/1234",
        "--x",
        "ab-correct-horse-cd",
        "disabled-here",
    ]
    shown = ["/home/me/project/train.py", "--remote", "https://github.com/a/1234", "--x", "ab-***-cd", "disabled-here"]
    assert mask_secrets(line, environment) == shown


PIECES = st.sampled_from(
    [*"@:/?&=;#'\"{}[],-_. \n\\%+*<>$", "://", "http://", "git@", "token", "password", "api_key", "hooks", "--", "Bearer ", "=", ": ",
     "%3A%2F%2F", "sk-", "eyJ", "-----BEGIN PRIVATE KEY-----", "a", "Z", "7", "é", "\ud800", "::", "***", "key=", "http://h?u=http://h?u="],
)  # fmt: skip


@given(st.lists(st.lists(PIECES, max_size=30).map("".join), max_size=6))
def test_masking_takes_anything_and_twice_is_once(arguments):
    once = mask_arguments(arguments)
    assert len(once) == len(arguments)
    assert all(isinstance(shown, str) for shown in once)
    masked = [mask_text(argument) for argument in arguments]
    assert all(isinstance(text, str) for text in masked)


def test_addresses_in_addresses_end():
    text = "http://h?next=" * 5000
    assert MASK in mask_text(text)
    deep = "[" * 100_000
    assert mask_arguments([deep]) == [deep]


def test_a_key_of_the_environment_is_masked_elsewhere_if_it_looks_random():
    environment = {"APP_KEY": SECRET, "ROOT_KEY": "parameters"}
    assert mask_secrets(["--x", f"a-{SECRET}", "--y", "parameters"], environment) == [
        "--x",
        "a-***",
        "--y",
        "parameters",
    ]
