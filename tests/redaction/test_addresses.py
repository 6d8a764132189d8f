"""Addresses are shown without what gives access: users, passwords, parameters, paths of webhooks."""

import pytest

from tensormeter.redaction import mask_address, mask_text, strip_address

SECRET = "Zq7XWmK2pL"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://user:{}@host/path", "https://***@host/path"),
        ("https://{}@github.com/a/b", "https://***@github.com/a/b"),
        ("HTTPS://u:{}@HOST:8080/a?b=c#d", "HTTPS://***@HOST:8080/a?b=c#d"),
        ("postgres://user:pa@{}@host/db", "postgres://***@host/db"),
        ("postgres://user:pa@@{}@host:5432/db?sslmode=require", "postgres://***@host:5432/db?sslmode=require"),
        ("postgresql://u:pa/{}@host/db", "postgresql://***@host/db"),
        ("postgresql://u:pa#{}@host/db", "postgresql://***@host/db"),
        ("https://u:pa@ss/{}@host/db", "https://***@host/db"),
        ("postgresql://{}@host/db", "postgresql://***@host/db"),
        ("redis://:{}@h:1/0", "redis://***@h:1/0"),
        ("mongodb+srv://u:{}@h1,h2/db", "mongodb+srv://***@h1,h2/db"),
        ("jdbc:sqlserver://h;user=u;password={};x=1", "jdbc:sqlserver://h;user=u;password=***;x=1"),
        ("jdbc:postgresql://h/db?user=u&password={}", "jdbc:postgresql://h/db?user=u&password=***"),
        ("user:pa@{}@host:5432/db", "***@host:5432/db"),
        ("user:{}@host:team/code.git", "***@host:team/code.git"),
        ("//u:{}@h/x", "//***@h/x"),
        ("git+https://{}@github.com/o/r.git@v1#egg=x", "git+https://***@github.com/o/r.git@v1#egg=x"),
        ("http://h/data?split=train&token={}", "http://h/data?split=train&token=***"),
        ("http://h/data?private_token={}&a=b", "http://h/data?private_token=***&a=b"),
        ("http://h/?%74oken={}", "http://h/?%74oken=***"),
        ("https://x.blob.core.windows.net/c?sv=1&sig={}", "https://x.blob.core.windows.net/c?sv=1&sig=***"),
        ("s3://a/b?X-Amz-Signature={}&X-Amz-Date=2", "s3://a/b?X-Amz-Signature=***&X-Amz-Date=2"),
        ("http://h/p#access_token={}&x=1", "http://h/p#access_token=***&x=1"),
        ("https://h/p?next=https%3A%2F%2Fu%3A{}%40h", "https://h/p?next=***"),
        ("https://hooks.slack.com/services/T0/B0/{}", "https://hooks.slack.com/services/***"),
        ("https://discord.com/api/webhooks/123/{}", "https://discord.com/api/webhooks/***"),
        ("https://discordapp.com/api/webhooks/123/{}?wait=true", "https://discordapp.com/api/webhooks/***?wait=true"),
        ("https://outlook.office.com/webhook/{}/IncomingWebhook/1", "https://outlook.office.com/webhook/***"),
        ("https://foo.webhook.office.com/webhookb2/{}@x/IncomingWebhook/y", "https://foo.webhook.office.com/webhookb2/***"),
        ("https://hooks.zapier.com/hooks/catch/123/{}/", "https://hooks.zapier.com/hooks/***"),
        ("https://mattermost.example.org/hooks/{}", "https://mattermost.example.org/hooks/***"),
        ("https://chat.googleapis.com/v1/spaces/A/messages?key={}&token=x-{}",
         "https://chat.googleapis.com/v1/spaces/A/messages?key=***&token=***"),
        ("https://hook.eu1.make.com/{}", "https://hook.eu1.make.com/***"),
        ("https://webhook.site/{}/more", "https://webhook.site/***"),
        ("https://n8n.example.org/webhook-test/{}", "https://n8n.example.org/webhook-test/***"),
        ("slack://{}/b/c/#channel", "slack://***"),
        ("discord://{}@123", "discord://***"),
        ("jdbc:oracle:thin:scott/{}@//host:1521/x", "jdbc:oracle:thin:***@//host:1521/x"),
        ("root:{}@10.0.0.5:5432/db", "***@10.0.0.5:5432/db"),
        ("root:{}@db.example.org", "***@db.example.org"),
        ("https://u:{}@[::1]:80/x", "https://***@[::1]:80/x"),
        ("https://api.telegram.org/bot12345:{}/sendMessage", "https://api.telegram.org/bot***/sendMessage"),
        ("https://maker.ifttt.com/trigger/e/with/key/{}", "https://maker.ifttt.com/trigger/e/with/key/***"),
    ],
)  # fmt: skip
def test_secrets_in_an_address_are_masked(address, shown):
    assert mask_address(address.format(SECRET, SECRET)) == shown
    assert mask_text(address.format(SECRET, SECRET)) == shown
    if "://" in address:
        assert mask_text(f'go to "{address.format(SECRET, SECRET)}" now') == f'go to "{shown}" now'


@pytest.mark.parametrize(
    "address",
    [
        "https://host:8080/@scope/package",
        "https://github.com/team/hooks.git",
        "https://host/a?revision=main&page=10&q=x",
        "git@github.com:team/code.git",
        "ssh://git@host:22/team/code",
        "hf://datasets/user/name@main/x",
        "python:3.11@sha256:0123",
        "mailto:me@example.org/x",
        "localhost:4320/path",
        "me@example.org",
        "abfss://container@account.dfs.core.windows.net/path",
        "hf://gpt2@main/config.json",
        "postgresql://me@host/db",
        "ollama:llama3@v1",
        "npm:package@1.2.3",
        "C:\\runs\\x",
        "/srv/a@b:c/d",
    ],
)
def test_an_address_without_secrets_stays(address):
    assert mask_address(address) == address
    assert mask_text(address) == address


@pytest.mark.parametrize(
    ("remote", "shown"),
    [
        ("https://user:{}@git.example.org/team/code.git", "https://git.example.org/team/code.git"),
        ("https://user:pa@{}@git.example.org/team/code.git", "https://git.example.org/team/code.git"),
        ("https://{}@git.example.org/team/code.git", "https://git.example.org/team/code.git"),
        ("https://git.example.org/team/code.git?private_token={}", "https://git.example.org/team/code.git"),
        ("https://git.example.org/team/code.git#access_token={}", "https://git.example.org/team/code.git"),
        ("ssh://git@git.example.org:22/team/code.git", "ssh://git@git.example.org:22/team/code.git"),
        ("ssh://user:{}@git.example.org/team/code.git", "ssh://git.example.org/team/code.git"),
        ("git@git.example.org:team/code.git", "git@git.example.org:team/code.git"),
        ("user:{}@git.example.org:team/code.git", "git.example.org:team/code.git"),
        ("{}@git.example.org:team/code.git", "git.example.org:team/code.git"),
        ("hg::https://user:{}@git.example.org/team/code", "hg::https://git.example.org/team/code"),
        ("ext::ssh --password {} git.example.org team/code", "ext::***"),
        ("https://github.com/hooks/code.git", "https://github.com/hooks/code.git"),
        ("file:///srv/code.git", "file:///srv/code.git"),
        ("git://host/code.git", "git://host/code.git"),
        ("../code.git", "../code.git"),
        ("", ""),
    ],
)
def test_the_address_of_a_repository_has_neither_user_nor_parameters(remote, shown):
    assert strip_address(remote.format(SECRET)) == shown
