"""What ``keybroker kbs --env-file`` makes on first start: folders, a master key, a certificate."""

import logging
import os
import tempfile
from pathlib import Path

from keybroker.api.certificates import self_signed
from keybroker.config.kbs import KbsConfig
from keybroker.config.kbs_env import EnvPlaces, load_env
from keybroker.model.errors import ConfigError
from keybroker.storage.encryption import make_key_file

logger = logging.getLogger(__name__)


def prepare(path: str, home: Path | None) -> KbsConfig:
    """Read a ``kbs.env``, and make what is missing.

    Args:
        path: the file.
        home: where everything is kept, certificates below it; None: the original's places.

    Raises:
        ConfigError: the file is not valid, or something cannot be made.
    """
    places = EnvPlaces() if home is None else EnvPlaces(home, home / "certs")
    loaded = load_env(path, places)
    try:
        places.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not places.master_key.exists():
            make_key_file(places.master_key)
        tls = places.tls_key, places.tls_certificate
        if not all(file.exists() for file in tls):
            places.tls_key.parent.mkdir(parents=True, exist_ok=True)
            # Under the names that the original gives them, so that its operators find them.
            with tempfile.TemporaryDirectory(dir=places.tls_key.parent) as folder:
                made = self_signed(Path(folder), loaded.names)
                made.private_key.replace(places.tls_key)
                made.certificate.replace(places.tls_certificate)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    os.environ.update(loaded.proxies)
    for note in loaded.notes:
        logger.warning("%s: %s", path, note)
    return loaded.config
