"""What the practice Hyper-V host's PowerShell refuses; its own answers are the product's tests."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from hyperv import envelope
from lab.faults import FaultSwitches
from lab.hyperv_host.script_call import Parameters, Script, ScriptHost

BOOTSTRAP = base64.b64decode(envelope.arguments()[-1]).decode("utf-16-le")
GOOD = {
    "script": "# Script: known\n",
    "name": "known",
    "parameters": {"number": 7, "text": "seven"},
}


class Pipe:
    label = ""

    def __init__(self, stdin: bytes) -> None:
        self._stdin = stdin
        self.output: dict[str, bytes] = {"stdout": b"", "stderr": b""}

    def read_all(self) -> bytes:
        return self._stdin

    def write(self, stream: str, data: bytes) -> None:
        self.output[stream] += data


def _known(given: Parameters) -> dict[str, Any]:
    return {"twice": 2 * given.number("number"), "text": given.text("text")}


def _run(document: Any, command: str = BOOTSTRAP) -> tuple[int, Any]:
    scripts = {"known": Script(_known, frozenset({"number", "text"}))}
    stdin = document if isinstance(document, bytes) else json.dumps(document).encode()
    pipe = Pipe(base64.b64encode(stdin))
    code = ScriptHost(scripts, FaultSwitches(), "HV1")(command, pipe)
    line = pipe.output["stdout"].strip()
    if not line:
        return code, pipe.output["stderr"].decode()
    assert line.startswith(b"<<holdfast:1:") and line.endswith(b":holdfast>>")
    packed = base64.b64decode(line.removeprefix(b"<<holdfast:1:").removesuffix(b":holdfast>>"))
    return code, json.loads(gzip.decompress(packed))


def test_a_known_script_gets_its_parameters() -> None:
    assert _run(GOOD) == (0, {"ok": True, "value": {"twice": 14, "text": "seven"}})


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"not json", "cannot be read"),
        ([], "cannot be read"),
        ({**GOOD, "script": "Get-VM"}, "calls itself"),
        ({**GOOD, "script": "# Script: known\n# Script: other\n"}, "calls itself"),
        ({**GOOD, "name": "other"}, "calls itself"),
        ({"script": "# Script: other", "parameters": {}}, "does not know the script 'other'"),
        ({**GOOD, "parameters": {"number": 7}}, "missing or too many: text"),
        ({**GOOD, "parameters": {**GOOD["parameters"], "more": 1}}, "too many: more"),  # type: ignore[dict-item]
        ({**GOOD, "parameters": {"number": "7", "text": "x"}}, "'number' to type int"),
        ({**GOOD, "parameters": {"number": True, "text": "x"}}, "'number' to type int"),
        ({**GOOD, "parameters": []}, "not an object"),
        (b" " * (1 << 20) + b" ", "1048577 bytes"),
    ],
)
def test_what_is_not_a_known_call_is_refused_in_an_envelope(document: Any, words: str) -> None:
    code, answer = _run(document)
    assert (code, answer["ok"]) == (1, False)
    assert words in answer["error"]["message"]


def test_another_command_than_the_bootstrap_is_not_run() -> None:
    code, said = _run(GOOD, "Remove-VM -Name *")
    assert code == 1 and "nothing but the scripts it knows" in said


def test_every_script_of_the_product_is_known(tmp_path: Path) -> None:
    """Name by name; the parameters are those of the script's own header."""
    from lab.hyperv_host.practice_host import PracticeHost, all_scripts

    practice = PracticeHost(tmp_path / "volumes", tmp_path / "run")
    known = all_scripts(practice.host, practice.iscsi, None, practice.network)  # type: ignore[arg-type]
    folder = Path(envelope.__file__).parent / "scripts"
    names = {path.stem for path in folder.glob("*.ps1")} - {"common", "bootstrap"}
    assert known.keys() == names
    for name, script in known.items():
        text = (folder / f"{name}.ps1").read_text()
        for parameter in script.parameters:
            assert f'"{parameter}"' in text.partition("# Value:")[0], (name, parameter)
