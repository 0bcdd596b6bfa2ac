#!/usr/bin/env bash
# Plants every known bug, one at a time, and asks the layer that should find it to
# fail. Test binaries are built once, with the build tag "mutants"; without a bug
# they must pass. Exits 1 if a bug survives, if a bug in the source stands not in
# the table, or if the table names one that the source does not have.
#
#   scripts/mutants.sh [MUTANT...]
set -euo pipefail
cd "$(dirname "$0")/.."

# bug | package | tests | arguments
#
# The simulator runs at most 399 seeds: a batch of 400 would also fail for a
# situation that is never met, which is no proof that the bug was seen.
sim='internal/sim|^TestSeeds$|-seeds=399'
# The same for the sessions: 99 seeds.
sessions='internal/sim/sessions|^TestSessions$|-seeds=99'
# The same for clusters.
cluster='internal/sim/cluster|^TestSeeds$|-seeds=299'
table="
abort-told-before-applied    |$sim
apply-reads-unreplicated     |$sim
apply-reads-unreplicated     |internal/shard|^TestReplicasAgree$|
begin-beats-abort-record     |$sim
commit-on-first-yes          |$sim
commit-sent-before-applied   |$sim
divergence-ignored           |internal/shard|^TestDivergedReplicaHalts$|
drain-admits                 |$sim
end-at-first-ack             |$sim
execute-as-if-new            |$sessions
expired-id-begins            |$sim
failover-aborts-open         |$cluster
failover-forgets-decided     |$sim
failover-forgets-decided     |$cluster
failover-keeps-deadline      |$cluster
forget-without-watermark     |$sim
forgotten-below-now          |$sim
foreign-give-way-once        |internal/sim/sessions|^TestDeaths$|
foreign-answered-by-follower |$cluster
foreign-any-request          |$sessions
foreign-never-inquires       |$sessions
foreign-release-early        |$sessions
foreign-token-ignored        |$sessions
foreign-yield-prepared       |$sessions
hazard-forgotten             |$sim
ignore-digest                |$sim
leading-before-lead-applied  |$sim
leading-before-lead-applied  |$cluster
active-abort-contacts-nobody |$sessions
lock-compat-s-x              |$sim
lock-compat-s-x              |$sessions
lock-compat-u-u              |internal/lock|^TestModes$|-rapid.nofailfile
lock-conversion-queues-up    |internal/lock|^TestScenarios$|-rapid.nofailfile
lock-cycle-ignores-waiters   |internal/lock|^TestScenarios$|-rapid.nofailfile
lock-compat-s-x              |internal/lock|^TestModes$|-rapid.nofailfile
lock-holder-only-wait        |$sim
lock-holder-only-wait        |internal/lock|^TestScenarios$|-rapid.nofailfile
lock-no-wound                |internal/sim/sessions|^TestWithoutFaults$|
lock-no-wound                |internal/lock|^TestTableDoesWhatTheModelDoes$|-rapid.nofailfile
lock-no-wound                |internal/lock|^TestScenarios$|-rapid.nofailfile
lock-no-overtake-bound       |internal/lock|^TestScenarios$|-rapid.nofailfile
lock-restore-drops-shared    |$sim
lock-restore-drops-shared    |internal/lock|^TestRestoredTableGoesOnAlike$|-rapid.nofailfile
lock-restore-loses-order     |$sim
lock-restore-loses-order     |internal/lock|^TestRestoredTableGoesOnAlike$|-rapid.nofailfile
lock-wound-misses-conversions|internal/lock|^TestScenarios$|-rapid.nofailfile
map-order-in-apply           |$sim
not-found-from-memory        |$sim
not-found-from-memory        |$cluster
one-phase-aborted-by-timeout |$sim
one-phase-guesses-no         |$sim
participant-keyed-by-attempt |$sim
participant-no-tombstone     |$sim
phase-two-gives-up           |$sim
read-only-told-to-commit     |$sim
release-at-decision          |$sim
repeat-answered-from-memory  |$cluster
repeat-answered-from-memory  |internal/shard|^TestRepeatsAreAnsweredThroughTheLog$|
restore-forgets-waiters      |internal/shard|^TestRestoreAnswersWhoWaits$|
release-at-decision          |$sessions
remove-placed-member         |internal/txn|^TestScenarios$|-rapid.nofailfile
rollback-without-record      |$sim
second-decision-wins         |$sim
skip-term-check              |$sim
skip-term-check              |$cluster
step-sent-before-granted     |$sessions
undeclared-keys-shared       |internal/node|^TestModes$|
unknown-is-success           |$sim
victim-is-prepared           |$sessions
locks-of-any-registration    |internal/sim/sessions|^TestMoves$|
removal-misses-locks         |internal/sim/sessions|^TestMoves$|
log-ack-after-failure        |internal/replog|^TestWriteErrorsAreFatal$|
log-no-floor-check           |internal/replog|^TestDamageAfterCleanClose$|
log-no-promise-check         |internal/replog|^TestEveryFlippedByteOfAKilledLogIsFound$|
log-retry-failed-write       |internal/replog|^TestWriteErrorsAreFatal$|
log-skip-failed-apply        |internal/replog|^TestApplyErrorHalts$|
log-skip-fsync               |internal/replog|^TestPowerLossUnderLoad$|
"
rows() { sed '/^$/d; s/ *|/|/g' <<<"$table"; }

# ---- the table and the source name the same bugs
planted=$(grep -rhoE 'mutant\.(On|MapOrder)\("[a-z0-9-]+"' --include='*.go' . | sed 's/.*("//; s/"//' | sort -u)
listed=$(rows | cut -d'|' -f1 | sort -u)
if [ "$planted" != "$listed" ]; then
	echo "the table of scripts/mutants.sh and the source differ (< source, > table):" >&2
	diff <(echo "$planted") <(echo "$listed") >&2 || true
	exit 1
fi

wanted() { # is the bug asked for?
	[ ${#only[@]} -eq 0 ] && return 0
	local m
	for m in "${only[@]}"; do [ "$m" = "$1" ] && return 0; done
	return 1
}
only=("$@")
for m in ${only[@]+"${only[@]}"}; do
	grep -qx -- "$m" <<<"$listed" || { echo "no planted bug is called $m" >&2; exit 1; }
done

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
binary() { echo "$dir/${1//\//-}.test"; }

run() { # bug package tests arguments: output to $dir/out
	(cd "$2" && ASSENT_MUTANT="$1" timeout 300 "$(binary "$2")" -test.run "$3" -test.timeout 280s -test.failfast $4) >"$dir/out" 2>&1
}

# ---- without a bug everything passes
survivors=()
while IFS='|' read -r package tests args; do
	[ -e "$(binary "$package")" ] || go test -c -tags mutants -o "$(binary "$package")" "./$package"
	if ! run "" "$package" "$tests" "$args"; then
		echo "fails without any bug: $package $tests $args" >&2
		tail -n 30 "$dir/out" >&2
		exit 1
	fi
done < <(rows | while IFS='|' read -r m rest; do wanted "$m" && echo "$rest" || true; done | sort -u)

# ---- with each bug something fails
printf '%-30s %-16s %s\n' BUG LAYER 'FOUND BY'
while IFS='|' read -r m package tests args; do
	wanted "$m" || continue
	verdict=SURVIVES
	if ! run "$m" "$package" "$tests" "$args"; then
		if seed=$(grep -m1 -oE 'seed [0-9]+, step [0-9]+' "$dir/out"); then
			verdict=$seed
		elif failed=$(grep -m1 -oE '^ *--- FAIL: [^ ]+' "$dir/out"); then
			verdict=${failed##* }
		elif grep -qE '^panic:|^fatal error:' "$dir/out"; then
			verdict='panic'
		fi
	fi
	[ "$verdict" = SURVIVES ] && survivors+=("$m ($package)")
	printf '%-30s %-16s %s\n' "$m" "$package" "$verdict"
done < <(rows)
if [ ${#survivors[@]} -gt 0 ]; then
	echo "not found: ${survivors[*]}" >&2
	exit 1
fi
