"""`config.json`: which chunk rule a repository has, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.repository.blob_store.local_folder import LocalFolderStore
from appliance.repository.chunker import CHUNK_RULES, NEW_REPOSITORY_RULE
from appliance.repository.errors import CorruptError, RepositoryVersionError
from appliance.repository.format import CONFIG_NAME
from appliance.repository.setup import RepositoryConfig, create_repository, read_config

# As the first version wrote it: no word of a chunk rule, and a checksum over what there is.
WITHOUT_A_RULE = {
    "version": 1,
    "repository_id": "5b0c1c1ad2a14c7e9d4e0f6a7b8c9d0e",
    "created_at": "2026-11-20T03:15:00Z",
    "encrypted": False,
    "checksum": "0eea6c8ff6c7d96b0ed384cd84ba1057",
}


def read(folder: Path, text: str) -> RepositoryConfig:
    file = folder / CONFIG_NAME
    file.unlink(missing_ok=True)
    file.write_text(text)
    return read_config(LocalFolderStore(folder), folder)


def test_a_new_repository_records_the_newest_rule(tmp_path: Path) -> None:
    """It stands in the file, so that a later default does not change what there is."""
    create_repository(tmp_path / "r")
    text = (tmp_path / "r" / CONFIG_NAME).read_text()
    assert json.loads(text)["chunking"] == NEW_REPOSITORY_RULE == max(CHUNK_RULES)
    assert read(tmp_path, text).chunking == NEW_REPOSITORY_RULE


def test_a_configuration_without_a_rule_keeps_its_checksum_and_has_rule_1(tmp_path: Path) -> None:
    """It was written before there was a second rule; written anew it is still the same."""
    config = read(tmp_path, json.dumps(WITHOUT_A_RULE))
    assert config.chunking == 1
    assert read(tmp_path, config.model_dump_json()) == config


@pytest.mark.parametrize("number", [1, 3, 2**40])
def test_a_changed_rule_is_found_by_the_checksum(tmp_path: Path, number: int) -> None:
    """Damage is not taken for a newer version, nor another rule used unnoticed."""
    create_repository(tmp_path / "r")
    document = json.loads((tmp_path / "r" / CONFIG_NAME).read_text())
    with pytest.raises(CorruptError, match="checksum"):
        read(tmp_path, json.dumps(document | {"chunking": number}))
    del document["chunking"]
    with pytest.raises(CorruptError, match="checksum"):
        read(tmp_path, json.dumps(document))


def test_a_rule_that_this_version_does_not_know_is_of_a_newer_one(tmp_path: Path) -> None:
    """With its checksum right it is no damage; the error says what to do."""
    create_repository(tmp_path / "r")
    config = read(tmp_path, (tmp_path / "r" / CONFIG_NAME).read_text())
    newer = config.model_copy(update={"chunking": max(CHUNK_RULES) + 1})
    newer = newer.model_copy(update={"checksum": newer.expected_checksum()})
    with pytest.raises(RepositoryVersionError, match=f"rule {newer.chunking}"):
        read(tmp_path, newer.model_dump_json())


@pytest.mark.parametrize("number", [0, -1, "two", None, 1.5])
def test_a_rule_that_is_no_number_from_1_on_is_damage(tmp_path: Path, number: object) -> None:
    """No such rule was ever written."""
    document = WITHOUT_A_RULE | {"chunking": number, "checksum": ""}
    with pytest.raises(CorruptError, match="chunking"):
        read(tmp_path, json.dumps(document))
