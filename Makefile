# Every target sets up what a fresh Debian 12 machine lacks; `make setup` is quick when nothing is missing.
PYTHON ?= $(shell test -x /usr/bin/python3 && echo /usr/bin/python3 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

DEBIAN_RUN := python3-venv qemu-system-x86 qemu-utils fuse3 libfuse2 tgt ntfs-3g samba
DEBIAN_LAB := busybox-static mmdebstrap e2fsprogs fdisk grub-pc-bin grub-common samba-vfs-modules libiscsi-bin qemu-block-extra ovmf mtools dosfstools
DEBIAN_CHECK := dosfstools xfsprogs
DEBIAN_TEST := $(DEBIAN_CHECK) chromium libnfs-utils libnbd-bin python3-libnbd nbdkit fio openssl git libvhdi-utils
DEBIAN_BENCH := borgbackup restic smbclient
DEBIAN_OVA := mmdebstrap grub-pc-bin grub-common mtools dosfstools e2fsprogs fdisk qemu-utils
DEBIAN_TEST_OVA := qemu-system-x86 ovmf openssh-client
STAMP := $(VENV)/.installed

# Hundreds of tests start the program: it is compiled once, whatever the caller's environment says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test check format bench ova test-ova clean
.NOTPARALLEL:

setup: $(STAMP)
	@tools/debian-packages $(DEBIAN_RUN) $(DEBIAN_LAB) $(DEBIAN_TEST)
	@$(BIN)/python -m tests.support.govmomi_build

$(STAMP): pyproject.toml constraints.txt
	@tools/debian-packages $(DEBIAN_RUN)
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy -m ova.build
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: setup
	$(BIN)/python -m lab.demo

bench: setup
	@tools/debian-packages $(DEBIAN_BENCH)
	$(BIN)/python -m tests.perf.bench

ova: setup
	@tools/debian-packages $(DEBIAN_OVA)
	$(BIN)/python -m ova.build

test-ova: setup
	@tools/debian-packages $(DEBIAN_OVA) $(DEBIAN_TEST_OVA)
	$(BIN)/python -m pytest ova/tests

# Never the key: without it no appliance that was built here can be updated again.
clean:
	test ! -d build || find build -mindepth 1 -maxdepth 1 ! -name update-signing.key -exec rm -rf {} +
	rm -rf dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
