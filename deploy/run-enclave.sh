#!/usr/bin/env bash
# Starts an enclave with nitro-cli, and stays as long as it lives: what supervises this script supervises the enclave.
#
#   EIF=FILE      the image                                  (required)
#   MEMORY=MIB    memory, as `subrosa plan` says             (required)
#   CPUS=N        CPUs                                       (2)
#   CID=N         its address; the parent's is vsock:N:5000  (16)
#   DEBUG=1       debug mode, with the console in the log: PCR0-2 are zero, no key opens, nobody is served
#   POLL=S        seconds between two looks at it            (2)
#
# Exit: 0 told to stop (SIGTERM, SIGINT), and the enclave is terminated; 1 the enclave ended by itself, or did not start;
# 2 a setting is wrong; 127 there is no nitro-cli. After it ended early, the next start waits: 2 s, 4 s, ... 5 minutes
# (counted in $RUNTIME_DIRECTORY, where systemd gives one), until one life has lasted 10 minutes.
set -uo pipefail

readonly LONG_LIFE=600 LONGEST_WAIT=300 PATIENCE=3 SHOUT_EVERY=60

say() { printf 'run-enclave: %s\n' "$*" >&2; }
# sd-daemon(3): "<1>" makes the line an alert in the journal.
alert() { printf '<1>run-enclave: %s\n' "$*" >&2; }
usage() {
    say "$*"
    exit 2
}
number() { # name, value
    case $2 in
    '' | *[!0-9]* | 0*) usage "$1 should be a whole number above 0, it is '$2'" ;;
    esac
}

main() {
    eif=${EIF:-} memory=${MEMORY:-} cpus=${CPUS:-2} cid=${CID:-16} poll=${POLL:-2}
    debug=${DEBUG:-}
    [ "$debug" = 0 ] && debug=''
    if ! command -v nitro-cli >/dev/null 2>&1; then
        say 'nitro-cli is not installed: it starts enclaves, and only a Nitro instance of EC2 can run it.'
        say 'On Amazon Linux 2023: dnf install aws-nitro-enclaves-cli (see docs/OPERATING.md).'
        say 'Without EC2, make test-qemu boots the image in an emulated machine.'
        exit 127
    fi
    [ -n "$eif" ] || usage 'EIF is not set: name the image, as in EIF=target/eif/subrosa.eif'
    [ -r "$eif" ] || usage "EIF: $eif cannot be read (make eif builds one)"
    number MEMORY "$memory"
    number CPUS "$cpus"
    number CID "$cid"
    case $poll in '' | *[!0-9.]* | . | *.*.*) usage "POLL should be a number of seconds, it is '$poll'" ;; esac
    # "the minimum is 4": CID 3 is the parent's, below are reserved ones.
    [ "$cid" -ge 4 ] || usage "CID: $cid belongs to the machine itself; 4 or more are for enclaves"
    # nitro-cli refuses it too, but says less.
    local least=$((($(stat -c %s "$eif") * 4 + 1048575) / 1048576))
    [ "$memory" -ge "$least" ] || usage "MEMORY: $memory MiB, but nitro-cli wants 4 times the image: $least"

    id='' console='' stopping=''
    # Before anything is waited for: a signal that comes meanwhile is acted upon.
    trap stop TERM INT
    back_off
    start
    watch
}

# An enclave of ours that outlived its supervisor would hold memory, CPUs and CID.
clear_leftovers() {
    local old
    old=$(nitro-cli describe-enclaves 2>/dev/null | of_cid "$cid")
    if [ -n "$old" ]; then
        say "an enclave with CID $cid is still there: terminating $old"
        if ! nitro-cli terminate-enclave --enclave-id "$old" >/dev/null; then
            say "CID $cid is taken by $old, which does not end"
            failed
        fi
    fi
}

start() {
    clear_leftovers
    local arguments=(run-enclave --eif-path "$eif" --memory "$memory" --cpu-count "$cpus" --enclave-cid "$cid")
    if [ -n "$debug" ]; then
        arguments+=(--debug-mode)
        shout
    fi
    say "nitro-cli ${arguments[*]}"
    local said pid
    said=$(mktemp)
    # In the background, so that a signal does not wait for it.
    nitro-cli "${arguments[@]}" >"$said" &
    pid=$!
    if ! wait_whole "$pid"; then
        rm -f "$said"
        say 'nitro-cli did not start the enclave: its words are above, and in /var/log/nitro_enclaves'
        failed
    fi
    id=$(first EnclaveID <"$said")
    rm -f "$said"
    if [ -z "$id" ]; then
        say 'nitro-cli said no EnclaveID: it is not known what was started'
        failed
    fi
    started=$SECONDS
    say "started $id (CID $cid, $memory MiB, $cpus CPUs)"
    if [ -n "$stopping" ]; then
        finish
    fi
    if [ -n "$debug" ]; then
        nitro-cli console --enclave-id "$id" >&2 &
        console=$!
    fi
}

watch() {
    local state failures=0
    while :; do
        nap "$poll"
        [ -z "$stopping" ] || finish
        [ -z "$debug" ] || [ $((SECONDS - shouted)) -lt "$SHOUT_EVERY" ] || shout
        if state=$(nitro-cli describe-enclaves 2>/dev/null); then
            failures=0
            state=$(printf '%s\n' "$state" | of_id "$id")
            case $state in
            RUNNING) ;;
            '')
                say "$id has ended"
                failed
                ;;
            *)
                say "$id is $state"
                end_enclave
                failed
                ;;
            esac
        else
            failures=$((failures + 1))
            say "nitro-cli describe-enclaves failed ($failures of $PATIENCE)"
            if [ "$failures" -ge "$PATIENCE" ]; then
                say 'it is not known whether the enclave lives: terminating it'
                end_enclave
                failed
            fi
        fi
        [ $((SECONDS - started)) -lt "$LONG_LIFE" ] || forget_failures
    done
}

# What is waited for must be in the background: bash runs traps only between commands. A signal cuts a nap short,
nap() {
    local pid
    sleep "$1" &
    pid=$!
    wait "$pid"
    kill "$pid" 2>/dev/null
}
# but not the start of an enclave: what a signal interrupted is waited for again.
wait_whole() {
    local rc again
    while :; do
        wait "$1"
        rc=$?
        [ "$rc" -gt 128 ] || return "$rc"
        kill -0 "$1" 2>/dev/null && continue
        # It has ended, perhaps between the signal and here; bash still knows how, if it has not said it yet (else 127).
        wait "$1"
        again=$?
        [ "$again" -ne 127 ] || return "$rc"
        return "$again"
    done
}

# Only notes it: what it interrupts finishes first, so that no enclave is left behind half started.
stop() { stopping=yes; }

finish() {
    end_enclave
    forget_failures
    say 'stopped'
    exit 0
}

end_enclave() {
    if [ -n "$console" ]; then
        kill "$console" 2>/dev/null
        wait "$console" 2>/dev/null
        console=''
    fi
    [ -n "$id" ] || return 0
    say "terminating $id"
    nitro-cli terminate-enclave --enclave-id "$id" >/dev/null || say "$id could not be terminated"
    id=''
}

shout() {
    shouted=$SECONDS
    alert 'DEBUG MODE: the memory and console of this enclave are open to this machine.'
    alert 'DEBUG MODE: its PCR0, PCR1 and PCR2 are zero; no key opens to it and it serves nobody. Set DEBUG=0.'
}

# Early ends are counted across lives, so that a broken image does not start every few seconds. systemd before 254 has no
# RestartSteps, and Amazon Linux 2023 has 252.
counter() { printf '%s' "${RUNTIME_DIRECTORY:+$RUNTIME_DIRECTORY/failures}"; }
count() {
    local file
    file=$(counter)
    if [ -n "$file" ] && [ -r "$file" ]; then tr -cd '0-9' <"$file" | head -c 4; fi
}
forget_failures() {
    local file
    file=$(counter)
    [ -z "$file" ] || rm -f "$file"
}
failed() {
    [ -z "$console" ] || kill "$console" 2>/dev/null
    local file number
    file=$(counter)
    if [ -n "$file" ]; then
        number=$(count)
        printf '%s\n' "$((10#${number:-0} + 1))" >"$file"
    fi
    [ -z "$stopping" ] || exit 0
    exit 1
}
back_off() {
    local number wait
    number=$(count)
    number=$((10#${number:-0}))
    [ "$number" -gt 0 ] || return 0
    if [ "$number" -gt 8 ]; then wait=$LONGEST_WAIT; else wait=$((1 << number)); fi
    say "ended early $number times: waiting $wait s before the next start"
    nap "$wait"
    [ -z "$stopping" ] || finish
}

# nitro-cli prints objects with one member on each line.
first() { sed -n "s/^ *\"$1\": \"\\([^\"]*\\)\".*/\\1/p" | head -n 1; }
# The state of the enclave with this id, of a list.
of_id() {
    awk -F'"' -v id="$1" '
        $2 == "EnclaveID" { ours = ($4 == id) }
        $2 == "State" && ours { print $4; exit }'
}
# The id of the enclave with this CID, of a list.
of_cid() {
    awk -F'"' -v cid="$1" '
        $2 == "EnclaveID" { id = $4 }
        $2 == "EnclaveCID" { sub(/^: */, "", $3); sub(/,.*/, "", $3); if ($3 == cid) { print id; exit } }'
}

main
