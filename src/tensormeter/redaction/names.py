"""Recognition of secrets by name: how likely it is that a name belongs to a secret.

Names come from options, environment variables, configuration keys, HTTP headers and address parameters. They are split
into words: `wandb-apiKey` consists of wandb, api and key. Therefore `tokenizer`, `max_tokens` and `monkey` do not
indicate secrets.
"""

import re
from enum import IntEnum
from functools import lru_cache
from typing import Final

__all__ = ["Suspicion", "passed_on", "suspect", "suspect_member"]


class Suspicion(IntEnum):
    """Degree to which a name indicates a secret.

    Attributes:
        NONE: The name does not indicate a secret.
        RANDOM: The value is a secret if it looks random, as for `--key`, `user_key` and `signature`.
        PIN: The value is a secret if it looks random or is a string of four or more digits.
        SECRET: Every string is a secret, except words such as `true` and placeholders such as `<pad>`.
        PASSWORD: Strings and integers are secrets.
    """

    NONE = 0
    RANDOM = 1
    PIN = 2
    SECRET = 3
    PASSWORD = 4


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_FLAT_WORD: Final = re.compile(r"[a-z]+")
_LONGEST_NAME: Final = 256

_PASSWORD: Final = re.compile(r".*(passw(or)?d|passphrase|passcode|passwort)|.*pwd|pw|psw|pswd|pword|pass_word")
_PASSWORDS: Final = re.compile(r".*(passw(or)?ds|passphrases|passcodes)|pwds")
_STRONG: Final = re.compile(
    r".*secret(?!ar|ion|ive|ly|or).*|.*credentials?|creds?|.*cookies?|bearer|jwts?|authorization|dsn|sas|otp|totp|connstr|passkeys?"
    r"|.*(api|access|auth|bearer|refresh|session|private)(key|token)s?"
)
_NO_COOKIE: Final = re.compile(r".*cookiecutter")

_ABOUT: Final = _set(
    """file files path paths dir directory folder location env envvar var variable name names type types kind method methods mode
    length len size count counter number num min max policy limit timeout ttl expiry expiration expires expire lifetime field column
    provider backend scheme algorithm algo version enabled enable disabled required require sock socket url uri urls endpoint host
    server port prefix rate ids index arn region format strategy style class fn func function manager helper source scope scopes
    level status stdin jar user username email date age retries attempts loss accuracy acc score metric dim ratio prob probability issuer audience
    realm tenant"""
)
"""Last words of names that describe a secret without containing it, such as `password_file` and `api_key_env`."""

_VALUE: Final = _set("value values string str raw plain plaintext pem")
"""Last words that do not change the meaning of a name, as in `api_key_value`."""

_ADDRESS: Final = _set("webhook webhooks url urls uri uris address endpoint link hook")

_PLAIN_TOKENS: Final = _set(
    """pad padding eos bos unk unknown mask masked sep separator cls special start end stop begin beginning prefix suffix middle fill
    image img video audio speech vision visual eot eod eom boi eoi sot word sub subword text byte char character sentence newline
    blank sink register class time timestamp lang language task trigger placeholder per each next last first single oov extra soft
    virtual target source src tgt input output query by max min num n total avg mean tokens tokenizer vocab vocabulary added forced
    decoder encoder continuation control reserved thinking think latent action state patch memory prompt completion response
    emotion speaker style delimiter dummy distill distillation cross attention nl lf cr tab space whitespace sentinel"""
)
"""Words before `token` that indicate a text token rather than a secret."""

_SERVICES: Final = _set(
    """api access auth oauth hub hf huggingface wandb wb comet cometml neptune clearml mlflow tensormeter swanlab dagshub openai anthropic
    claude cohere gemini mistral groq deepseek openrouter perplexity together pinecone weaviate qdrant langchain langsmith langfuse
    aws azure gcp google gcs ibm oci alibaba aliyun tencent github gitlab gh gl git bitbucket gitea azuredevops ado kaggle roboflow
    labelbox runpod modelscope ngc nvidia nim datadog dd newrelic sentry grafana honeycomb lightstep splunk slack discord telegram
    twilio sendgrid mailgun stripe pagerduty pushover pushbullet ntfy notion linear jira atlassian zapier docker registry pypi npm
    conda artifactory nexus vault consul jupyter ray databricks snowflake elastic elasticsearch minio redis refresh bearer session
    csrf xsrf security id personal deploy ci serpapi tavily replicate fireworks voyage jina xai zhipu dashscope moonshot"""
)
"""Services whose tokens and keys grant access, and common words for such tokens and keys."""

_CRYPTIC: Final = _set(
    """secret private account encryption encrypt decryption decrypt crypto signing sign license licence subscription ssh rsa dsa ecdsa
    pgp gpg aes hmac master ingest ingestion instrumentation passphrase fernet vpn wifi jwt saml apikey"""
)
"""Words before `key` that indicate a cryptographic key or an account key."""

_KEYS: Final = _CRYPTIC | (
    _SERVICES - _set("id ray git linear registry redis gcs session refresh hub ci notion elastic")
)
"""Words before `key` that make every string value a secret. Other keys, such as `root_key`, often hold entry names."""

_PLAIN_KEYS: Final = _set(
    """sort primary public foreign cache metric metrics partition rng prng random group index lookup unique composite join dict hot
    arch architecture dataset datasets data eval evaluation train training val validation test split image images label labels text
    target targets input inputs output outputs loss feature features sample samples obs observation action state camera config
    experiment exp task weights weight checkpoint ckpt param params layer block batch reward answer prompt response column"""
)
"""Words before `key` that indicate the name of an entry, even if it looks random: `dataset_key: ImageNet21kW2B16`."""

_PASSES: Final = _set(
    """db database user admin root smtp ssh ftp sftp http https proxy mail email mysql postgres pg redis mongo mongodb rabbitmq ldap
    vpn key pfx ssl tls cert registry docker git login account wifi sudo server client service api basic my the"""
)
_CODES: Final = _set(
    "auth authorization verification mfa otp access security secret unlock recovery backup activation confirmation pairing pin sms"
)
_TOKEN_IDS: Final = _SERVICES | {"modal"}
_HOLDERS: Final = _set("token tokens key keys auth auths")
_AUTHS: Final = _set("auth oauth")
_DENIED: Final = _set("no without disable disabled skip ignore")
_COUNTED: Final = _set("num n max min count total number")

_PARTS: Final = _set(
    "shared consumer app service admin root integration storage token cookie webhook bot function functions deployment"
)
"""Words that may be joined with `key`, as in `appkey`."""

_PERSONAL: Final = _set("github gitlab gh gl git azure azuredevops ado devops bitbucket")

_COMPOUND: Final = re.compile(
    rf"({'|'.join(sorted(_SERVICES | _KEYS | _PASSES | _PARTS, key=len, reverse=True))})(tokens?|keys?|pass|auth)",
)
_HOOK: Final = re.compile(r".*webhook(url|uri)?")
_RANDOM: Final = re.compile(r"signature|sig|session|sessionid|sid|hmac|.*(token|key|pass|auth)|.*(jwt|dsn)")


def suspect(name: str, parent: str = "") -> Suspicion:
    """Judge how strongly a name indicates a secret.

    Args:
        name: Name of the value. Leading dashes and other punctuation are ignored.
        parent: Name of the mapping that contains the value. For example, `key` in `wandb` differs from `key` in
            `cache`.
    """
    return _suspect(name[-_LONGEST_NAME:], parent[-_LONGEST_NAME:])


def suspect_member(name: str, parent: str, inherited: Suspicion) -> Suspicion:
    """Judge the name of a mapping's member.

    Args:
        name: Name of the member.
        parent: Name of the mapping.
        inherited: Suspicion passed on from the mapping's name; see `passed_on`.
    """
    words, above = _words(_WORD, name[-_LONGEST_NAME:]), _words(_WORD, parent[-_LONGEST_NAME:])
    if words and words[-1] in _ABOUT:
        return suspect(name, parent)
    if words and above and words[-1] in _SERVICES - {"id"} and above[-1] in _HOLDERS:  # `hf` in `tokens`
        return Suspicion.SECRET
    return max(suspect(name, parent), inherited)


def passed_on(name: str, suspicion: Suspicion) -> Suspicion:
    """Return the suspicion that a mapping passes on to its members because of its name.

    The names `token` and `key` alone pass on none, because they also name parts of models. `auth` passes on only a weak
    suspicion, because most of its members are settings, such as `{"issuer": "https://..."}`.
    """
    words = _words(_WORD, name[-_LONGEST_NAME:])
    if words in (["token"], ["key"]) or suspicion is Suspicion.NONE:
        return Suspicion.NONE
    return Suspicion.RANDOM if words[-1:] and words[-1] in _AUTHS else min(suspicion, Suspicion.SECRET)


@lru_cache(4096)
def _suspect(name: str, parent: str) -> Suspicion:
    above, _, last = name.rpartition(".")
    if above and last.lower() == "key":  # `wandb.key` is `key` in `wandb`
        name, parent = last, above
    name, parent = name.replace("@", " at "), parent.replace("@", " at ")
    splits = ((_WORD, name, parent), (_FLAT_WORD, name.lower(), parent.lower()))  # `WandB` as two words and as one
    return max(_judge(_words(word, text), _words(word, outer)) for word, text, outer in splits)


def _words(word: re.Pattern[str], name: str) -> list[str]:
    words: list[str] = []
    for match in word.finditer(name):
        text = match[0].lower()
        compound = _COMPOUND.fullmatch(text)
        words += [compound[1], compound[2]] if compound else [text]
    return words


def _judge(own: list[str], parent: list[str]) -> Suspicion:
    if own and own[0] in _DENIED:  # a switch: `--no-auth`
        return Suspicion.NONE
    if own[-1:] == ["string"] and own[-2:-1] in (["connection"], ["conn"]):  # a database password is in it
        return Suspicion.SECRET
    words = own.copy()
    while len(words) > 1 and words[-1] in _VALUE:
        words.pop()
    if words and words[0] in _VALUE:  # `value` in `hub_token`
        words, parent = parent, []
    if not words:
        return Suspicion.NONE
    last = words[-1]
    before = words[-2] if len(words) > 1 else parent[-1] if parent else ""
    if last in _ADDRESS and {"webhook", "webhooks"} & set(words):
        return Suspicion.SECRET
    if last in _ABOUT:
        return Suspicion.NONE
    if _PASSWORD.fullmatch(last) and not _COUNTED & set(words):
        return Suspicion.PASSWORD
    if any(_PASSWORD.fullmatch(word) or _PASSWORDS.fullmatch(word) for word in words):
        return Suspicion.SECRET
    if any(_STRONG.fullmatch(word) and not _NO_COOKIE.fullmatch(word) for word in words):
        return Suspicion.SECRET
    if words[-2:] == ["token", "id"]:  # token IDs of a hosted service, but not `pad_token_id`
        owner = words[-3:-2] or parent[-1:]
        return Suspicion.RANDOM if owner and owner[0] in _TOKEN_IDS else Suspicion.NONE
    if last == "id" and len(words) > 2 and words[-2] == "key":  # ID of an AWS access key
        return Suspicion.SECRET if words[-3] in _KEYS else Suspicion.NONE
    if last == "id":
        return Suspicion.RANDOM if before in ("session", "sess") else Suspicion.NONE
    if last == "token":
        return Suspicion.NONE if before in _PLAIN_TOKENS else Suspicion.SECRET
    if last == "tokens":
        return Suspicion.SECRET if before in _SERVICES else Suspicion.NONE
    if last in ("key", "keys"):
        if before in _PLAIN_KEYS:
            return Suspicion.NONE
        if len(words) == 1 and last == "key":  # `key` in `wandb` can be the name of a metric
            return Suspicion.SECRET if before in _CRYPTIC | _AUTHS else Suspicion.RANDOM
        return Suspicion.SECRET if before in _KEYS else Suspicion.RANDOM
    if last == "api":
        return Suspicion.RANDOM if before in _SERVICES else Suspicion.NONE
    if last == "pin":
        return Suspicion.PIN
    if last in _AUTHS or (words == ["basic"] and parent[-1:] == ["auth"]):
        return Suspicion.SECRET
    if last == "pass":
        return Suspicion.SECRET if len(words) == 1 or before in _PASSES | _SERVICES else Suspicion.RANDOM
    if last == "code":
        return Suspicion.SECRET if before in _CODES else Suspicion.NONE
    if last == "pat":
        return Suspicion.SECRET if before in _PERSONAL else Suspicion.RANDOM
    if _HOOK.fullmatch(last):
        return Suspicion.SECRET
    return Suspicion.RANDOM if _RANDOM.fullmatch(last) else Suspicion.NONE
