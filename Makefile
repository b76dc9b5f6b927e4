# Two commands: `make serve` serves a disk, `make test` tests everything. Each first installs what it needs, on a
# Debian 12 that has git, make and python3 (3.11 or later).
#
#   make serve                   a RAM disk on 127.0.0.1:3260, and the lines to use it with
#   make serve CONFIG=my.toml    what the file says
#   make test ARGS="-k wire"     ARGS go to pytest
#   make test JOBS=0             one test after another; JOBS processes share the test files

PYTHON ?= python3
VENV ?= .venv
CONFIG ?=
ARGS ?=
# The tests wait for others as much as they compute: a third more processes than cores keep the cores busy.
JOBS ?= $(shell n=$$(nproc); echo $$((n + (n + 1) / 2)))

# The foreign programs that judge our protocol, the tools that the tests make disks with, and a compiler for the C loop
# that the bench compares with. Debian packages.
JUDGES := libiscsi-bin qemu-utils qemu-block-extra nbdkit openssl fio tgt istgt sg3-utils e2fsprogs libcairo2 fuse3 mount util-linux fdisk cryptsetup-bin gcc libc6-dev

ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
APT := $(ROOT) env DEBIAN_FRONTEND=noninteractive apt-get -qq -o=Dpkg::Use-Pty=0

.PHONY: serve test judges clean

serve: $(VENV)/.installed
	exec $(VENV)/bin/python -m iscsid serve $(if $(CONFIG),-c "$(CONFIG)")

test: $(VENV)/.installed-dev judges
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# Debian takes ensurepip out of python3 and puts it into python3-venv.
$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "iscsid needs Python 3.11 or later: make PYTHON=...")'
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(APT) update && $(APT) install --no-install-recommends python3-venv; }
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/pip
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/.installed

# Without them the tests that need one are skipped, aloud; ISCSID_JUDGES=all makes them fail instead. The packages of the
# targets among them start them, on our port: only their programs are wanted.
judges:
	@command -v apt-get >/dev/null || { echo "no apt-get here: install the likes of $(JUDGES) yourself"; exit 0; }; \
	missing="$$(for name in $(JUDGES); do dpkg-query -W -f='$${db:Status-Status}' $$name 2>/dev/null | grep -qx installed || echo $$name; done)"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	echo "installing" $$missing; \
	$(APT) update && $(APT) install --no-install-recommends $$missing || exit 1; \
	if [ -d /run/systemd/system ]; then \
		for name in $(filter tgt istgt,$(JUDGES)); do \
			case " "$$missing" " in *[[:space:]]$$name[[:space:]]*) $(ROOT) systemctl disable --now $$name;; esac; \
		done; \
	fi

clean:
	rm -rf $(VENV) build dist *.egg-info
