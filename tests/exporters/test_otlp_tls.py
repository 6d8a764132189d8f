"""TLS by both protocols, with certificates of the test's own authority."""

import ssl
import subprocess

import grpc
import pytest

from support.otlp_receivers import Grpc, Http, exporting
from tensormeter.errors import SettingsError
from tensormeter.exporter import Accepted, Retry
from tensormeter_exporters.otlp.environment import read_targets
from tensormeter_exporters.otlp.exporter import OtlpExporter

pytestmark = pytest.mark.usefixtures("only_our_variables")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, a server's certificate for 127.0.0.1 and a client's, by OpenSSL's own tool."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    authority = ("-subj", "/CN=authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "30", *authority)
    (folder / "names").write_text(
        "subjectAltName=IP:127.0.0.1\nkeyUsage=critical,digitalSignature\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", f"{name}.pem", "-days", "30", "-extfile", "names")  # fmt: skip
    return folder


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_mutual_tls_needs_both_certificates(make, config, certificates, monkeypatch, protocol):
    if protocol == "grpc":
        pair = ((certificates / "server.key").read_bytes(), (certificates / "server.pem").read_bytes())
        authority = (certificates / "ca.pem").read_bytes()
        server = Grpc(grpc.ssl_server_credentials([pair], authority, require_client_auth=True))
    else:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.pem")
        context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        context.verify_mode = ssl.CERT_REQUIRED
        server = Http(context)
    request = make.logged(1, make.rows({1: {"loss": 1.0}}))
    target = {"endpoint": f"https://127.0.0.1:{server.port}", "protocol": protocol}
    try:
        with exporting(config(**target)) as exporter:
            assert isinstance(exporter.export(request), Retry)  # an unknown authority
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(certificates / "ca.pem"))
        with exporting(config(**target)) as exporter:
            assert isinstance(exporter.export(request), Retry)  # the server wants to know who we are
        assert not server.received
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", str(certificates / "client.pem"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", str(certificates / "client.key"))
        with exporting(config(**target)) as exporter:
            assert exporter.export(request) == Accepted()
        assert len(server.received) == 1
    finally:
        server.stop()
    with pytest.raises(SettingsError, match="cannot read"):
        OtlpExporter(config(**target, certificate=str(certificates / "none.pem")))


def test_tls_goes_on_without_a_key_log_that_cannot_be_written(make, config, certificates, monkeypatch, caplog):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    server = Http(context)
    monkeypatch.setenv("SSLKEYLOGFILE", "/nowhere/keys")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(certificates / "ca.pem"))
    try:
        with exporting(config(endpoint=f"https://127.0.0.1:{server.port}")) as exporter:
            assert exporter.export(make.logged(1, make.rows({1: {"loss": 1.0}}))) == Accepted()
    finally:
        server.stop()
    assert ["SSLKEYLOGFILE" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("CERTIFICATE", "none.pem"),
        ("CERTIFICATE", "ca.key"),
        ("CERTIFICATE", ""),
        ("CLIENT_CERTIFICATE", "none.pem"),
        ("CLIENT_CERTIFICATE", "client.pem"),  # without its key
        ("CLIENT_KEY", "client.key"),  # without its certificate
    ],
)
def test_certificates_of_variables_that_cannot_be_used_are_warned_about_and_left_out(
    config, certificates, monkeypatch, caplog, protocol, variable, name
):
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{variable}", str(certificates / name))
    target = {"endpoint": "https://127.0.0.1:1", "protocol": protocol}
    with exporting(config(**target)):
        used = read_targets(config(**target))["metrics"]
    assert (used.certificate, used.client_certificate, used.client_key) == ("", "", "")
    assert [f"OTEL_EXPORTER_OTLP_{variable}" in record.getMessage() for record in caplog.records] == [True]
