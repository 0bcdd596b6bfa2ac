#!/usr/bin/env bash
# Installs what the tests need and this machine lacks. Nothing is installed, and
# nothing printed, where all is there. Debian and its kin; elsewhere it says what
# to install.
set -euo pipefail

missing=()
command -v make >/dev/null || missing+=(make)
# The race detector is linked with a C compiler, and needs the C library's headers.
if ! echo '#include <stdlib.h>' | "${CC:-gcc}" -E - >/dev/null 2>&1; then
	missing+=(gcc libc6-dev)
fi
# A PostgreSQL server; the tests start their own throw-away clusters of it.
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
# Modules are fetched over TLS.
[ -e /etc/ssl/certs/ca-certificates.crt ] || [ -d /etc/pki ] || [ -n "${SSL_CERT_FILE:-}" ] || missing+=(ca-certificates)

if ! command -v go >/dev/null; then
	echo "Go is not on the PATH: install the version that go.mod names, or a later one, from https://go.dev/dl/" >&2
	exit 1
fi

[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "The tests need: ${missing[*]} (Debian's names). There is no apt-get here; install them as this system does." >&2
	exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
	if ! sudo -n true 2>/dev/null; then
		echo "The tests need packages that are not installed. As root, run:" >&2
		echo "  apt-get update && apt-get install -y --no-install-recommends ${missing[*]}" >&2
		exit 1
	fi
	as_root=(sudo -n)
fi
echo "installing for the tests: ${missing[*]}"
case " ${missing[*]} " in *" postgresql "*)
	# Without the cluster that the package would make and start.
	if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
		"${as_root[@]}" mkdir -p /etc/postgresql-common
		echo "create_main_cluster = false" | "${as_root[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
	fi
	;;
esac
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	-o Dpkg::Options::=--force-confold "${missing[@]}" >/dev/null
