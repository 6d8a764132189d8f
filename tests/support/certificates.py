"""Certificates of servers."""

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["write_certificate"]


def write_certificate(
    certificate: Path, key: Path, *, host: str = "localhost", days: int = 2, passphrase: bytes | None = None
) -> None:
    """Replace two files by a new key and its self-signed certificate.

    Args:
        certificate: The file of the certificate.
        key: The file of the key.
        host: The host name that the certificate is for, next to 127.0.0.1 if it is "localhost".
        days: Days until the certificate expires. It has expired if this is negative.
        passphrase: The passphrase of the key; by default none.
    """
    made = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tensormeter test")])
    now = dt.datetime.now(dt.UTC)
    names: list[x509.GeneralName] = [x509.DNSName(host)]
    if host == "localhost":
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    usages = {"digital_signature", "key_cert_sign", "crl_sign"}
    every = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    every += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    usage = x509.KeyUsage(**{name: name in usages for name in every})
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(made.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=100))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(made.public_key()), critical=False)
        .sign(made, hashes.SHA256())
    )
    hidden = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    for file, content in [
        (certificate, signed.public_bytes(serialization.Encoding.PEM)),
        (key, made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)),
    ]:
        written = file.with_suffix(".new")
        written.write_bytes(content)
        written.replace(file)
