"""What is to be said of the webhook's certificate. Knows the files' contents, not where they are."""

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key


@dataclass(frozen=True, slots=True)
class Certificate:
    """What matters of it to who connects."""

    not_before: datetime
    not_after: datetime
    dns_names: tuple[str, ...]
    fits_key: bool


def read_certificate(cert_pem: bytes, key_pem: bytes) -> Certificate:
    """The first certificate of the chain, and whether the key is its own. Raises ValueError."""
    try:
        found = x509.load_pem_x509_certificates(cert_pem)[0]
    except ValueError as error:
        raise ValueError(f"the certificate is not PEM: {error}") from error
    try:
        key = load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it is encrypted
        raise ValueError(f"the key cannot be used: {error}") from error
    as_bytes = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Certificate(
        not_before=found.not_valid_before_utc,
        not_after=found.not_valid_after_utc,
        dns_names=_dns_names(found),
        fits_key=found.public_key().public_bytes(*as_bytes) == key.public_key().public_bytes(*as_bytes),
    )


def _dns_names(found: x509.Certificate) -> tuple[str, ...]:
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(names.get_values_for_type(x509.DNSName))
