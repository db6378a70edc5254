"""Random file operations as a shell script, each checked against a model that runs along.

The script runs in a guest on a mounted folder; /dev/vdb holds `PATTERN`, from where content comes,
so what a file must hold is known here. The same seed gives the same script.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field

PATTERN = random.Random(42).randbytes(1 << 20)
_SIZES = (1, 511, 4096, 5000, 65536, 200_000)
_NAMES = ("a", "b", "c", "d", "long-" + "n" * 250)
_MODES = ("600", "644", "4755", "2711", "1777", "0")
_FOLDERS_MAX = 5


@dataclass(eq=False)
class File:
    content: bytearray = field(default_factory=bytearray)
    mode: str = "644"
    links: int = 1
    text: str = ""  # of a symbolic link


@dataclass(eq=False)
class Folder:
    entries: dict[str, File | Folder] = field(default_factory=dict)


class FileOperations:
    def __init__(self, seed: int, folder: str) -> None:
        self._rng = random.Random(seed)
        self._top = folder
        self._root = Folder()
        self._folders: dict[str, Folder] = {folder: self._root}
        self.lines: list[str] = []

    def script(self, operations: int) -> str:
        """`operations` random ones, a remount between by `remount`, and a look at everything."""
        choices = (
            *(self._make, self._write, self._write, self._append, self._truncate, self._read),
            *(self._rename, self._rename, self._link, self._symlink, self._remove, self._mkdir),
            *(self._rmdir, self._list, self._chmod, self._touch, self._exclusive),
        )
        for number in range(operations):
            self._rng.choice(choices)()
            if number % 50 == 25:
                self.lines.append("echo 3 >/proc/sys/vm/drop_caches")
        self.lines.append("remount")
        self._look_at_everything()
        return "\n".join(self.lines) + "\n"

    # choosing

    def _place(self) -> tuple[str, Folder, str]:
        path = self._rng.choice(sorted(self._folders))
        name = self._rng.choice(_NAMES)
        return f"{path}/{name}", self._folders[path], name

    def _file(self) -> tuple[str, File] | None:
        found = [
            (f"{path}/{name}", each)
            for path, folder in sorted(self._folders.items())
            for name, each in sorted(folder.entries.items())
            if isinstance(each, File) and not each.text
        ]
        return self._rng.choice(found) if found else None

    def _run(self, command: str) -> None:
        self.lines.append(f"{command} || fail {len(self.lines)}")

    def _refused(self, command: str) -> None:
        self.lines.append(f"{command} 2>/dev/null && fail {len(self.lines)}")

    # operations

    def _make(self) -> None:
        path, folder, name = self._place()
        there = folder.entries.get(name)
        if isinstance(there, Folder):
            self._refused(f"(: >{path})")
        elif there is None:
            self._run(f": >{path}")
            folder.entries[name] = File()
        elif not there.text:
            self._run(f": >{path}")
            there.content.clear()

    def _exclusive(self) -> None:
        path, folder, name = self._place()
        if name in folder.entries:
            self._refused(f"(set -C; : >{path})")
        else:
            self._run(f"(set -C; : >{path})")
            folder.entries[name] = File()

    def _write(self) -> None:
        found = self._file()
        if found is None:
            return
        path, file = found
        size, start = self._rng.choice(_SIZES), self._rng.randrange(500_000)
        offset = self._rng.choice((0, 1, 4096, 70_000, self._rng.randrange(100_000)))
        sync = self._rng.choice(("", ",fsync"))
        self._copy(path, start, size, f"conv=notrunc{sync} oflag=seek_bytes seek={offset}")
        self._put(file, offset, PATTERN[start : start + size])

    def _append(self) -> None:
        found = self._file()
        if found is None:
            return
        path, file = found
        size, start = self._rng.choice(_SIZES), self._rng.randrange(500_000)
        self._copy(path, start, size, "conv=notrunc oflag=append")
        file.content += PATTERN[start : start + size]

    def _copy(self, path: str, start: int, size: int, how: str) -> None:
        source = f"if=/dev/vdb iflag=skip_bytes,count_bytes,fullblock skip={start} count={size}"
        self._run(f"dd {source} of={path} bs=64k {how} status=none")

    def _put(self, file: File, offset: int, data: bytes) -> None:
        file.content += bytes(max(0, offset - len(file.content)))
        file.content[offset : offset + len(data)] = data

    def _truncate(self) -> None:
        found = self._file()
        if found is not None:
            path, file = found
            size = self._rng.randrange(150_000)
            self._run(f"truncate -s {size} {path}")
            file.content[size:] = bytes(max(0, size - len(file.content)))

    def _read(self) -> None:
        found = self._file()
        if found is not None:
            self._check_content(*found)

    def _rename(self) -> None:
        old_path, old, name = self._place()
        new_path, new, new_name = self._place()
        moved, there = old.entries.get(name), new.entries.get(new_name)
        if moved is None:
            self._refused(f"mv {old_path} {new_path}")
            return
        inside = new_path.startswith(old_path + "/")
        if isinstance(there, Folder) or inside or isinstance(moved, Folder) or moved is there:
            if isinstance(moved, Folder) and there is None and not inside:
                self._run(f"mv {old_path} {new_path}")
                self._move(old, name, new, new_name)
                self._rename_folders(old_path, new_path)
            return  # mv would do something else than rename(2)
        self._run(f"mv -f {old_path} {new_path}")
        if isinstance(there, File):
            there.links -= 1
        self._move(old, name, new, new_name)

    def _move(self, old: Folder, name: str, new: Folder, new_name: str) -> None:
        new.entries[new_name] = old.entries.pop(name)

    def _rename_folders(self, old_path: str, new_path: str) -> None:
        moved = {
            path: folder
            for path, folder in self._folders.items()
            if path == old_path or path.startswith(old_path + "/")
        }
        for path, folder in moved.items():
            del self._folders[path]
            self._folders[new_path + path.removeprefix(old_path)] = folder

    def _link(self) -> None:
        found = self._file()
        path, folder, name = self._place()
        if found is None or isinstance(folder.entries.get(name), Folder):
            return
        if name in folder.entries:
            self._refused(f"ln {found[0]} {path}")
            return
        self._run(f"ln {found[0]} {path}")
        folder.entries[name] = found[1]
        found[1].links += 1
        self._check(found[0], "%h", found[1].links)

    def _symlink(self) -> None:
        path, folder, name = self._place()
        if name in folder.entries:
            return
        text = f"nowhere-{self._rng.randrange(1000)}"
        self._run(f"ln -s {text} {path}")
        folder.entries[name] = File(text=text)

    def _remove(self) -> None:
        path, folder, name = self._place()
        there = folder.entries.get(name)
        if isinstance(there, File):
            self._run(f"rm {path}")
            del folder.entries[name]
            there.links -= 1
        else:
            self._refused(f"rm {path}")

    def _mkdir(self) -> None:
        path, folder, name = self._place()
        if name in folder.entries or len(path) > 600:
            self._refused(f"mkdir {path}") if name in folder.entries else None
        elif len(self._folders) < _FOLDERS_MAX:
            self._run(f"mkdir {path}")
            folder.entries[name] = self._folders[path] = Folder()

    def _rmdir(self) -> None:
        path, folder, name = self._place()
        there = folder.entries.get(name)
        if isinstance(there, Folder) and not there.entries:
            self._run(f"rmdir {path}")
            del folder.entries[name], self._folders[path]
        else:
            self._refused(f"rmdir {path}")

    def _list(self) -> None:
        path = self._rng.choice(sorted(self._folders))
        self._check_listing(path, self._folders[path])

    def _chmod(self) -> None:
        found = self._file()
        if found is not None:
            found[1].mode = self._rng.choice(_MODES)
            self._run(f"chmod {found[1].mode} {found[0]}")
            self._check(found[0], "%a", found[1].mode)

    def _touch(self) -> None:
        found = self._file()
        if found is not None:
            when = self._rng.randrange(1, 1 << 31)
            self._run(f"touch -d @{when} {found[0]}")
            self._check(found[0], "%Y", when)

    # checking

    def _check(self, path: str, form: str, expected: object) -> None:
        self._run(f'[ "$(stat -c {form} {path})" = {expected} ]')

    def _check_content(self, path: str, file: File) -> None:
        digest = hashlib.md5(file.content, usedforsecurity=False).hexdigest()
        self._check(path, "%s", len(file.content))
        self._run(f'[ "$(md5sum <{path})" = "{digest}  -" ]')

    def _check_listing(self, path: str, folder: Folder) -> None:
        lines = "".join(f"{name}\n" for name in sorted(folder.entries))
        digest = hashlib.md5(lines.encode(), usedforsecurity=False).hexdigest()
        self._run(f'[ "$(ls -A {path} | sort | md5sum)" = "{digest}  -" ]')

    def _look_at_everything(self) -> None:
        for path, folder in sorted(self._folders.items()):
            self._check_listing(path, folder)
            for name, each in sorted(folder.entries.items()):
                if isinstance(each, Folder):
                    inner = sum(isinstance(one, Folder) for one in each.entries.values())
                    self._check(f"{path}/{name}", "%h", 2 + inner)
                elif each.text:
                    self._run(f'[ "$(readlink {path}/{name})" = {each.text} ]')
                else:
                    self._check_content(f"{path}/{name}", each)
                    self._check(f"{path}/{name}", "%h", each.links)
                    self._check(f"{path}/{name}", "%a", each.mode)
