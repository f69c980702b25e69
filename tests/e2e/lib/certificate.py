"""Makes a certificate authority and a certificate of it for localhost: CA_FILE, CERTIFICATE_FILE, KEY_FILE."""

import datetime
import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = datetime.timedelta(days=1)


def name(text):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def certificate(subject, key, issuer, issuer_key, extension):
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder(name(issuer), name(subject), key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - DAY).not_valid_after(now + DAY)
    signed = builder.add_extension(extension, critical=False).sign(issuer_key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def main():
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    written = [
        certificate("obo-e2e CA", ca_key, "obo-e2e CA", ca_key, constraints),
        certificate("localhost", key, "obo-e2e CA", ca_key, names),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    ]
    for path, text in zip(sys.argv[1:], written, strict=True):
        with open(path, "wb") as file:
            file.write(text)


main()
