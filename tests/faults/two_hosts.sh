#!/usr/bin/env bash
# Two hosts on one machine: network namespaces with an address, a host name and a Ray node each, and a shared directory.
# A worker is killed in the middle of a task, then cut off in the middle of one; both runs must end by themselves with
# what an undisturbed run on one host makes, each artifact published once.
#
#   sudo PYTHON=.venv/bin/python tests/faults/two_hosts.sh
#
# Exit code 77: this machine does not allow it (no root, no namespaces, no Ray).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
a=spunge-a-$$ b=spunge-b-$$
dir=$(mktemp -d /tmp/two_hosts.XXXXXX)
export PYTHONPATH=$here:$here/..${PYTHONPATH:+:$PYTHONPATH}
export HF_HUB_OFFLINE=1 RAY_AUTH_MODE=disabled OMP_NUM_THREADS=1 RAY_grpc_client_keepalive_time_ms=10000 RAY_grpc_client_keepalive_timeout_ms=10000

skip() { echo "skipped: $*"; exit 77; }
fail() { echo "FAILED: $*"; tail -n 20 "$dir"/*.log 2>/dev/null || true; exit 1; }
all_of() { ip netns pids "$1" 2>/dev/null || true; }
kill_all_of() { for pid in $(all_of "$1"); do kill -9 "$pid" 2>/dev/null || true; done; }
tidy() {
    for host in $a $b; do kill_all_of "$host"; ip netns del "$host" 2>/dev/null || true; done
    rm -rf "$dir"
}

[ "$(id -u)" = 0 ] || skip "needs root for network namespaces"
command -v ip >/dev/null && command -v unshare >/dev/null || skip "needs ip and unshare"
"$python" -c 'import ray' 2>/dev/null || skip "ray is not installed: pip install 'spunge[ray]'"
ip netns add "$a" 2>/dev/null || skip "network namespaces are not allowed here"
trap tidy EXIT
ip netns add "$b"
ip link add "va$$" netns "$a" type veth peer name "vb$$" netns "$b"
ip -n "$a" addr add 10.123.0.1/24 dev "va$$"; ip -n "$b" addr add 10.123.0.2/24 dev "vb$$"
for end in "$a va$$" "$b vb$$"; do set -- $end; ip -n "$1" link set lo up; ip -n "$1" link set "$2" up; done

on() { local host=$1; shift; ip netns exec "$host" unshare --uts sh -c 'hostname "$0" && exec "$@"' "$host" "$@"; }
ray_node() { on "$1" "$python" -m ray.scripts.scripts start "${@:2}" --num-cpus=1 --object-store-memory=100000000 \
    --disable-usage-stats >"$dir/ray.$1.log" 2>&1 </dev/null || fail "Ray does not start on $1"; }
second_host() { ray_node "$b" --address=10.123.0.1:6379 --node-ip-address=10.123.0.2; }
spunge() { on "$a" "$python" -m spunge run recipe.yaml --quiet --allow-code --out "$@"; }

cd "$dir"
"$python" "$here/slow.py" build "$dir"
spunge undisturbed
ray_node "$a" --head --node-ip-address=10.123.0.1 --port=6379 --include-dashboard=false
second_host

disturbed() {  # NAME SECONDS COMMAND: a run on both hosts, and a command when the second is a few steps into its task
    local name=$1 begun
    echo "$2" >seconds; shift 2
    : >steps.log
    spunge "$name" --executor ray --address 10.123.0.1:6379 >"$name.log" 2>&1 &
    local run=$!
    for _ in $(seq 600); do [ "$(grep -c "^$b" steps.log)" -ge 5 ] && break; kill -0 $run || fail "$name: ended early"; sleep 0.2; done
    [ "$(grep -c "^$b" steps.log)" -ge 5 ] || fail "$name: the second host never took a task"
    "$@"
    begun=$SECONDS
    wait $run || fail "$name: the run did not end well"
    echo "$name: ended $((SECONDS - begun)) s after the fault"
    # The task went on at the step where the newest checkpoint was, on the other host.
    "$python" - "$a" "$b" <<'END' || fail "$name: the task did not go on from its checkpoint"
import collections, sys
steps = collections.defaultdict(lambda: collections.defaultdict(list))
for line in open("steps.log"):
    host, task, step = line.split()
    steps[task][host].append(int(step))
shared = [hosts for hosts in steps.values() if len(hosts) == 2]
assert shared, "no task was taken over"
for hosts in shared:
    print("  second host's steps", (min(hosts[sys.argv[2]]), max(hosts[sys.argv[2]])), "first host's", (min(hosts[sys.argv[1]]), max(hosts[sys.argv[1]])))
    assert min(hosts[sys.argv[1]]) >= 4
END
}

disturbed killed 0.5 kill_all_of "$b"
second_host
disturbed cut 3 ip -n "$b" link set "vb$$" down
for _ in $(seq 150); do [ -z "$(find cut/store -name ".*.$b.*" -path '*unlearn*')" ] && break; sleep 0.2; done  # the zombie ends
"$python" "$here/slow.py" compare "$dir" undisturbed killed cut || fail "the runs differ"
for name in killed cut; do
    [ "$(find "$name/store/unlearn" -mindepth 1 -maxdepth 1 ! -name '.*' | wc -l)" = 2 ] || fail "$name: not one artifact a task"
done
echo "two hosts: all as it should be"
