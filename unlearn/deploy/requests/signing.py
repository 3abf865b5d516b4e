"""Ed25519 signatures of a ledger's entries, by the ``cryptography`` package: whoever has the public key verifies them,
and only whoever has the private key makes them. ``verify_ledger.py`` verifies the same without the package, strictly.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from unlearn.config.schema import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAKE = 'export {}="$(openssl genpkey -algorithm ed25519)"'


def sign(text: str, variable: str, pem: str, public: str) -> str:
    """A signature in hex digits. ``ConfigError`` where the key in the variable is not that of ``public``."""
    if public_of(variable, pem) != public:
        raise ConfigError(f"sign={variable}: holds another key than the one that this ledger is signed with, {public}")
    return _private(variable, pem).sign(text.encode()).hex()


def public_of(variable: str, pem: str) -> str:
    """The public key of the private one in an environment variable, in hex digits."""
    return _private(variable, pem).public_key().public_bytes_raw().hex()


def signed(public: str, message: bytes, signature: str) -> bool:
    """Whether a signature of a message is right; key and signature in hex digits."""
    _check()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _private(variable: str, pem: str) -> "Ed25519PrivateKey":
    _check()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        found = load_pem_private_key(pem.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        found = None
    if not isinstance(found, Ed25519PrivateKey):
        raise ConfigError(f"sign={variable}: must hold an Ed25519 private key in PEM; {MAKE.format(variable)}")
    return found


def _check() -> None:
    if find_spec("cryptography") is None:
        raise ConfigError("a signed ledger needs cryptography: pip install -c constraints.txt -e .[sign]")
