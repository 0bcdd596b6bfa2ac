#!/bin/sh
# Checks the API definition and generates what is made of it: Go code and
# api/openapi.json. The tools' versions are pinned in tools.mod.
#   scripts/proto.sh          generate
#   scripts/proto.sh --check  fail if the committed files are not what would be generated
set -eu
cd "$(dirname "$0")/.."
buf="go tool -modfile=tools.mod buf"
$buf lint
if [ "${1:-}" = --check ]; then
	out=$(mktemp -d)
	trap 'rm -rf "$out"' EXIT
	$buf generate -o "$out"
	go run ./scripts/openapi "$out/api/assent/v1/assent.openapi.json" "$out/api/openapi.json"
	for f in api/openapi.json api/assent/v1/assent.pb.go api/assent/v1/assent_grpc.pb.go; do
		cmp "$f" "$out/$f" || {
			echo "proto: $f is not what api/assent/v1/assent.proto gives; run scripts/proto.sh and commit" >&2
			exit 1
		}
	done
	exit 0
fi
$buf generate
go run ./scripts/openapi api/assent/v1/assent.openapi.json api/openapi.json
rm api/assent/v1/assent.openapi.json
