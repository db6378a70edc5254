"""Who can write to the repository's folder cannot turn its encryption off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.base.secret import Secret
from appliance.repository.errors import CorruptError
from appliance.repository.repository import Repository

SECRET = Secret(b"correct horse")


@pytest.mark.parametrize("encrypted", [True, False])
def test_config_and_keys_must_agree_on_encryption(tmp_path: Path, encrypted: bool) -> None:
    """A changed `encrypted` in config.json is refused in both directions."""
    folder = tmp_path / "repository"
    secret = SECRET if encrypted else None
    Repository.create(folder, passphrase=secret)
    config = folder / "config.json"
    document = json.loads(config.read_text())
    document["encrypted"] = not encrypted
    config.chmod(0o600)
    config.write_text(json.dumps(document))
    with pytest.raises(CorruptError):
        Repository.open(folder, passphrase=secret)
